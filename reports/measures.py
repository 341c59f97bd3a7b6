"""The numbers that tables and sentences are made of: accuracy and the diagnostics, resampled once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from harness.base import unknown
from reports.frames import Missing, Run
from reports.statistics import LEVEL, RESAMPLES, Bootstrap, Difference, Interval, bootstrap, bootstrap_mean, compare, summarise
from tasks.catalogue import Protocol

_T = TypeVar("_T")


@dataclass(frozen=True)
class Measure:
    """One kind of number.

    Attributes:
        label, unit: for headers; scale: factor from the frame's number to the printed one.
        decimals: printed; higher_is_better: None where neither direction is better.
        description: what it is, for footnotes.
    """

    label: str
    unit: str
    scale: float
    decimals: int
    higher_is_better: bool | None
    description: str


MEASURES = {
    "score": Measure("Score", "", 1.0, 1, True, "the benchmark's own number"),
    "accuracy": Measure("Accuracy", "%", 100.0, 1, True, "share of questions answered right"),
    "nll": Measure("NLL", "nats/token", 1.0, 3, False, "negative log-likelihood of the gold answer, mean over its tokens"),
    "nll_pooled": Measure("NLL, pooled", "nats/token", 1.0, 3, False, "the same, mean over all questions of all benchmarks"),
    "teacher_agrees": Measure(
        "Agreement",
        "%",
        100.0,
        1,
        None,
        "share of questions on which student and teacher pick the same token at every gold position",
    ),
    "teacher_kl": Measure("KL", "nats/token", 1.0, 3, None, "KL(teacher || student), mean over the gold answer's tokens"),
    "entropy": Measure("Entropy", "nats", 1.0, 3, None, "entropy of the student at the first answer token"),
    "confidence": Measure("Confidence", "%", 100.0, 1, None, "largest probability at the first answer token"),
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

    ``protocol`` None stands for the mean over all protocols of the run with equal weight, which every measure has but
    ``score`` (the benchmarks' own numbers have different units).
    """

    run: Run
    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL
    _kept: dict[tuple[str, str, str | None], Bootstrap] = field(default_factory=dict, repr=False)
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
                raise Missing("Benchmarks have different units; there is no mean over them.")
            return bootstrap(self.run.scored(student, protocol.name), protocol, self.resamples, self.seed)
        rows, column = self._per_question(student, name)
        wanted = [p.name for p in self.run.protocols] if protocol is None else [protocol.name]
        rows = rows[rows["protocol"].isin(wanted)]
        absent = sorted(set(wanted) - set(rows["protocol"]))
        if absent:
            raise Missing(f"{student} has no {column} on {', '.join(absent)}.")
        if rows[column].isna().all():
            raise Missing(f"{name} is not defined for {student}.")  # the teacher against itself
        return bootstrap_mean(rows, column, self.resamples, self.seed, pooled=name in _POOLED)

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
        """Return a student's number with its interval, in the frame's unit."""
        return summarise(self.sample(student, name, protocol), self.level)

    def difference(self, a: str, b: str, name: str, protocol: Protocol | None) -> Difference:
        """Return student ``a`` minus student ``b``, paired."""
        return compare(self.sample(a, name, protocol), self.sample(b, name, protocol), self.level)

    def leaders(self, students: Sequence[str], name: str, protocol: Protocol | None) -> set[str]:
        """Return the best of ``students`` and all that are not resolved from it; empty where no direction is better."""
        better = measure(name).higher_is_better
        here = [s for s in students if self.has(s, name, protocol)]
        if better is None or not here:
            return set()
        sign = 1.0 if better else -1.0
        best = max(here, key=lambda s: sign * self.sample(s, name, protocol).value)
        return {best} | {s for s in here if not self.difference(best, s, name, protocol).resolved}
