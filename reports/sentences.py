"""What the summary's sentences are made of: a verdict, pairs of students with their paired difference, words for numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports.measures import Estimates, measure
from reports.statistics import Difference
from tasks.catalogue import Protocol

Verdict = Literal["resolved", "unresolved", "caveat"]


@dataclass(frozen=True)
class Conclusion:
    """One sentence or two; names of students stand between backticks, which each format turns into its own code style."""

    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Pair:
    """Student ``a`` minus student ``b``; ``protocol`` None for the mean over protocols."""

    a: str
    b: str
    protocol: Protocol | None
    result: Difference

    @property
    def sign(self) -> int:
        """1 or -1 where the difference is resolved, else 0."""
        return 0 if not self.result.resolved else 1 if self.result.value > 0 else -1


def compared(pairs: Sequence[tuple[str, str]], name: str, estimates: Estimates) -> list[Pair]:
    """Compare every pair on every protocol (scores) or on their mean (else), as far as the run holds both."""
    where: Sequence[Protocol | None] = estimates.run.protocols if name == "score" else (None,)
    return [
        Pair(a, b, p, estimates.difference(a, b, name, p))
        for p in where
        for a, b in pairs
        if estimates.has(a, name, p) and estimates.has(b, name, p)
    ]


def amount(pair: Pair, name: str) -> str:
    """Write a difference with its unit and interval."""
    m, d = measure(name), pair.result
    unit = " points" if pair.protocol is None or pair.protocol.unit == "points" else " percentage points"
    unit = unit if name == "score" else " percentage points" if m.unit == "%" else f" {m.unit}"
    numbers = [signed(m.scale * x, m.decimals) for x in (d.value, d.low, d.high)]
    return f"{numbers[0]}{unit} [{numbers[1]}, {numbers[2]}]"


def signed(value: float, decimals: int) -> str:
    """Write a number with its sign and a true minus; what rounds to zero has no sign."""
    text = f"{value:+.{decimals}f}"
    return (text.lstrip("+-") if float(text) == 0.0 else text).replace("-", "−")


def count(n: int, word: str) -> str:
    """Write a number of things."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Write names as code, at most ``most`` of them."""
    rest = len(names) - most
    return ", ".join(f"`{n}`" for n in names[:most]) + (f" and {rest} more" if rest > 0 else "")
