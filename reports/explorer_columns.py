"""Compact columns for the sample explorer: strings are kept once and rows point at them; files that a page loads from disk."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.base import write_text

_T = TypeVar("_T", bound=Hashable)


class Interned(Generic[_T]):
    """Values that are stored once; :meth:`at` returns the position of one, adding it where it is new."""

    def __init__(self) -> None:
        self._positions: dict[_T, int] = {}

    def at(self, value: _T) -> int:
        """Return the position of ``value``."""
        return self._positions.setdefault(value, len(self._positions))

    def find(self, value: _T) -> int | None:
        """Return the position of ``value``, or None where it was never added."""
        return self._positions.get(value)

    @property
    def kept(self) -> list[_T]:
        """All values, in the order of their positions."""
        return list(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


class Texts:
    """Texts as lists of lines, each line stored once: most prompts end alike."""

    def __init__(self) -> None:
        self.lines: Interned[str] = Interned()
        self.texts: Interned[tuple[int, ...]] = Interned()

    def at(self, text: str) -> int:
        """Return the position of ``text`` among :attr:`texts`."""
        return self.texts.at(tuple(self.lines.at(line) for line in text.strip().split("\n")))


def thousandths(values: Iterable[Any]) -> list[int | None]:
    """Round numbers to three decimals and return them as whole thousandths: a third of the space. None stays None."""
    return [None if v is None or not math.isfinite(v) else round(1000 * v) for v in values]


def significant(value: float, digits: int = 4) -> float:
    """Round to significant digits: weights span orders of magnitude."""
    return float(f"{value:.{digits}g}")


def write_script(target: Path, name: str, value: Any) -> Path:
    """Write ``value`` as a script that hands it to the page: a page opened from disk may not fetch JSON.

    Everything that could end a script element or open a comment is written as an escape, so that the file may be inlined.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    write_text(target, f"sampleData({json.dumps(name)},{text});\n")
    return target
