"""The numbers that tables and sentences are made of: accuracy and the diagnostics, resampled once and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pandas as pd

from harness.base import unknown
from reports.calibration import bootstrap_ece
from reports.frames import Missing, Run
from reports.statistics import (
    LEVEL,
    RESAMPLES,
    Bootstrap,
    Difference,
    Interval,
    adjust,
    bootstrap,
    bootstrap_mean,
    combine,
    compare,
    summarise,
)
from tasks.catalogue import Protocol

_T = TypeVar("_T")


@dataclass(frozen=True)
class Measure:
    """One kind of number.

    Attributes:
        label, unit: for headers; scale: factor from the frame's number to the printed one.
        decimals: printed; higher_is_better: None where neither direction is better.
        description: what it is, for footnotes.
        bounds: what the frame's number cannot leave, so that no interval does.
    """

    label: str
    unit: str
    scale: float
    decimals: int
    higher_is_better: bool | None
    description: str
    bounds: tuple[float, float] = (-math.inf, math.inf)


_SHARE, _POSITIVE = (0.0, 1.0), (0.0, math.inf)

MEASURES = {
    "score": Measure("Score", "", 1.0, 1, True, "the benchmark's own number"),
    "accuracy": Measure("Accuracy", "%", 100.0, 1, True, "share of questions answered right", _SHARE),
    "nll": Measure(
        "NLL", "nats/token", 1.0, 3, False, "negative log-likelihood of the gold answer, mean over its tokens", _POSITIVE
    ),
    "nll_pooled": Measure(
        "NLL, pooled", "nats/token", 1.0, 3, False, "the same, mean over all questions of all benchmarks", _POSITIVE
    ),
    "ece": Measure(
        "ECE",
        "%",
        100.0,
        1,
        False,
        "expected calibration error: |share right - mean confidence| over 15 equal bins of the confidence at the first answer"
        " token, weighted by size; on few questions it is above zero for a calibrated student too",
        _SHARE,
    ),
    "teacher_agrees": Measure(
        "Agreement",
        "%",
        100.0,
        1,
        None,
        "share of questions on which student and teacher pick the same token at every gold position",
        _SHARE,
    ),
    "teacher_kl": Measure(
        "KL", "nats/token", 1.0, 3, None, "KL(teacher || student), mean over the gold answer's tokens", _POSITIVE
    ),
    "entropy": Measure("Entropy", "nats", 1.0, 3, None, "entropy of the student at the first answer token", _POSITIVE),
    "confidence": Measure("Confidence", "%", 100.0, 1, None, "largest probability at the first answer token", _SHARE),
}

#: Measures that weigh questions equally instead of benchmarks, with the column that they average.
_POOLED = {"nll_pooled": "nll"}


def measure(name: str) -> Measure:
    """Return the measure called ``name``; an unknown one is a UserError with near matches."""
    if name not in MEASURES:
        raise unknown("measure", name, MEASURES)
    return MEASURES[name]


@dataclass
class Estimates:
    """Every estimate of one run, computed when first asked for.

    ``protocol`` None stands for the mean over all protocols of the run with equal weight; scores, whose units differ, are
    averaged as percent of their range: for the papers' six benchmarks that is the papers' average (MME's points / 20).
    """

    run: Run
    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL
    _kept: dict[tuple[str, str, str | None], Bootstrap] = field(default_factory=dict, repr=False)
    _compared: dict[tuple[str, str, str, bool], dict[str | None, Difference]] = field(default_factory=dict, repr=False)
    _once: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, key: str, make: Callable[[], _T]) -> _T:
        """Return what ``make`` returns, or raise what it raises as :class:`Missing`, computing it on the first call only."""
        if key not in self._once:
            try:
                self._once[key] = make()
            except Missing as missing:
                self._once[key] = missing
        found = self._once[key]
        if isinstance(found, Missing):
            raise found
        return found  # type: ignore[no-any-return]  # each key is used for one kind of thing

    def sample(self, student: str, name: str, protocol: Protocol | None) -> Bootstrap:
        """Return the bootstrap behind a number; :class:`Missing` where the run does not hold it."""
        key = (student, name, None if protocol is None else protocol.name)
        if key not in self._kept:
            self._kept[key] = self._resample(student, name, protocol)
        return self._kept[key]

    def _resample(self, student: str, name: str, protocol: Protocol | None) -> Bootstrap:
        measure(name)
        if name == "score":
            if protocol is None:
                return self._average(student)
            return bootstrap(self.run.scored(student, protocol.name), protocol, self.resamples, self.seed)
        if name == "ece":
            return self._calibration(student, protocol)
        rows, column = self._per_question(student, name)
        wanted = [p.name for p in self.run.protocols] if protocol is None else [protocol.name]
        rows = rows[rows["protocol"].isin(wanted)]
        absent = sorted(set(wanted) - set(rows["protocol"]))
        if absent:
            raise Missing(f"{student} has no {column} on {', '.join(absent)}.")
        if rows[column].isna().all():
            raise Missing(f"{name} is not defined for {student}.")  # the teacher against itself
        return bootstrap_mean(rows, column, self.resamples, self.seed, pooled=name in _POOLED)

    def _average(self, student: str) -> Bootstrap:
        """The mean over all protocols of the number in percent of its range."""
        awry = [p.name for p in self.run.protocols if p.range[0] != 0.0]
        if awry:
            raise Missing(f"{', '.join(awry)} does not start at 0, so there is no average.")
        factor = 100.0 / len(self.run.protocols)
        parts = [(factor / p.range[1], self.sample(student, "score", p)) for p in self.run.protocols]
        if len({sample.labels for _, sample in parts}) > 1:
            raise Missing(f"{student} was scored with other seeds on one benchmark than on another.")
        return combine(parts, "average")

    def _calibration(self, student: str, protocol: Protocol | None) -> Bootstrap:
        """ECE on one protocol, or its mean over all."""
        if protocol is None:
            parts = [(1.0 / len(self.run.protocols), self.sample(student, "ece", p)) for p in self.run.protocols]
            return combine(parts, "ece")
        rows, _ = self._per_question(student, "confidence")
        rows = rows[rows["protocol"] == protocol.name]
        if rows.empty or rows["confidence"].isna().all():
            raise Missing(f"{student} has no confidence on {protocol.name}.")
        return bootstrap_ece(rows, self.run.scored(student, protocol.name), f"ece: {protocol.name}", self.resamples, self.seed)

    def _per_question(self, student: str, name: str) -> tuple[pd.DataFrame, str]:
        """A student's rows on every protocol, and the column that the measure averages."""
        by_student = self.run.scores_by_student if name == "accuracy" else self.run.diagnosed_by_student
        if student not in by_student:
            raise Missing(f"{student} has no {'scores' if name == 'accuracy' else 'diagnostics'}.")
        return by_student[student], "score" if name == "accuracy" else _POOLED.get(name, name)

    def has(self, student: str, name: str, protocol: Protocol | None) -> bool:
        """Whether the run holds what the number needs."""
        try:
            self.sample(student, name, protocol)
        except Missing:
            return False
        return True

    def interval(self, student: str, name: str, protocol: Protocol | None) -> Interval:
        """Return a student's number with its interval, in the frame's unit; no end leaves what the number can be."""
        found = summarise(self.sample(student, name, protocol), self.level)
        if found.low is None or found.high is None:
            return found
        low, high = measure(name).bounds
        if name == "score":
            low, high = (0.0, 100.0) if protocol is None else protocol.range
        return replace(found, low=max(found.low, low), high=min(found.high, high))

    def difference(self, a: str, b: str, name: str, protocol: Protocol | None) -> Difference:
        """Return student ``a`` minus student ``b``, paired; Holm's correction is over the protocols that both have.

        The mean over protocols is one number and a family of its own.
        """
        key = (a, b, name, protocol is None)
        if key not in self._compared:
            self._compared[key] = self._compare(a, b, name, [None] if protocol is None else list(self.run.protocols))
        where = None if protocol is None else protocol.name
        if where not in self._compared[key]:
            self.sample(a, name, protocol), self.sample(b, name, protocol)  # one of them raises what is missing
        return self._compared[key][where]

    def _compare(self, a: str, b: str, name: str, where: Sequence[Protocol | None]) -> dict[str | None, Difference]:
        both = [p for p in where if self.has(a, name, p) and self.has(b, name, p)]
        found = [compare(self.sample(a, name, p), self.sample(b, name, p), self.level) for p in both]
        return {None if p is None else p.name: d for p, d in zip(both, adjust(found), strict=True)}

    def rivals(self, students: Sequence[str], name: str, protocol: Protocol | None) -> tuple[str | None, dict[str, Difference]]:
        """Return the best of ``students`` and its difference from each other one; nobody where no direction is better."""
        better = measure(name).higher_is_better
        here = [s for s in students if self.has(s, name, protocol)]
        if better is None or not here:
            return None, {}
        sign = 1.0 if better else -1.0
        best = max(here, key=lambda s: sign * self.sample(s, name, protocol).value)
        return best, {s: self.difference(best, s, name, protocol) for s in here if s != best}

    def leaders(self, students: Sequence[str], name: str, protocol: Protocol | None) -> set[str]:
        """Return the best of ``students`` and all that are not resolved from it; empty where no direction is better."""
        best, others = self.rivals(students, name, protocol)
        return ({best} if best is not None else set()) | {s for s, d in others.items() if not d.resolved}
