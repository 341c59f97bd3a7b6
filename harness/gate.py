"""The gate: is a run worse than its baseline by more than a margin, question by question?

Per student and protocol, with d = run minus baseline (paired by question, clusters resampled together) and margin m: FAIL
where d is shown to lie below -m, PASS where it is shown to lie above -m, INCONCLUSIVE otherwise. Both are one-sided tests; each
family of them (one test per comparison) is corrected by Holm, so that the gate fails falsely with probability at most alpha.

The tests are studentised: (d + m) / se against Student's t, with se from the cluster bootstrap. Tail shares of 2,000 resamples
cannot go below 1/2001, too coarse for a Holm correction over a hundred comparisons. A FAIL also needs as many clusters that
differ at all as let an exact sign test reject. Several seeds add their spread to the error (Welch-Satterthwaite), paired where
both sides have the same; with one, training variation is unmeasured, and the margins of trained students have to cover it.

Sources: non-inferiority by a one-sided interval, ICH E9 (1998), section 3.3.2; Holm 1979; Satterthwaite 1946;
Agresti & Min 2005 for the pseudo-counts of paired proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from harness.margins import Kind
from reports.decisions import holm, needed_n
from reports.resampling import Bootstrap
from reports.statistics import compare as paired

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
#: What stands in a comparison's ``protocol`` for the mean score over all protocols, each with equal weight.
ALL = "all protocols"


@dataclass(frozen=True)
class Measured:
    """A paired difference with its error.

    Attributes:
        difference: run minus baseline, in the protocol's unit, mean over seeds on either side.
        error: its standard error; df: degrees of freedom of that error.
        clusters_apart: clusters on which the two differ at all.
    """

    difference: float
    error: float
    df: float
    clusters_apart: int

    @property
    def identical(self) -> bool:
        """Whether the two score alike everywhere."""
        return self.clusters_apart == 0

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of "the true difference is at least ``bound``"."""
        if self.identical:
            return 1.0 if self.difference >= bound else 0.0
        floor = 0.5**self.clusters_apart
        if self.df <= 0:
            return 1.0
        if self.error == 0.0:
            return floor if self.difference < bound else 1.0
        return max(floor, float(stats.t.cdf((self.difference - bound) / self.error, self.df)))

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of "the true difference is at most ``bound``"."""
        if self.identical:
            return 0.0 if self.difference > bound else 1.0
        if self.df <= 0:
            return 1.0
        if self.error == 0.0:
            return 0.5**self.clusters_apart if self.difference > bound else 1.0
        return float(stats.t.sf((self.difference - bound) / self.error, self.df))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the limits of the difference, each one-sided at ``alpha``; infinite where no error can be given."""
        if self.identical or (self.error == 0.0 and self.df > 0):
            return self.difference, self.difference
        reach = float(stats.t.ppf(1.0 - alpha, self.df)) * self.error if self.df > 0 else math.inf
        return self.difference - reach, self.difference + reach


@dataclass(frozen=True)
class Flip:
    """A question whose score changed: mean scores over seeds, 0..1, and what was said (first seed on either side)."""

    id: str
    gold: str
    before: float
    after: float
    said_before: str | None
    said_after: str


@dataclass(frozen=True)
class Comparison:
    """One student on one protocol, or on :data:`ALL` of them.

    Attributes:
        seeds: trainings of the baseline and of the run; empty for given models.
        n, clusters: questions and clusters; before, after: the numbers; margin: in the same unit, ``unit``.
        low, high: limits of the difference, each one-sided at the gate's alpha, not corrected.
        p_fail, p_pass: adjusted by Holm; the verdict is FAIL or PASS where they are at most alpha.
        needed: questions that would decide with 80 % power if the true difference is the one seen; None for a verdict other
            than INCONCLUSIVE, and where no number would.
        flips: questions whose score changed, worse ones first.
    """

    student: str
    kind: Kind
    protocol: str
    unit: str
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    n: int
    clusters: int
    before: float
    after: float
    measured: Measured
    margin: float
    low: float
    high: float
    p_fail: float
    p_pass: float
    verdict: str
    needed: int | None
    flips: tuple[Flip, ...]

    @property
    def worse(self) -> list[Flip]:
        """Flips to a lower score."""
        return [flip for flip in self.flips if flip.after < flip.before]

    @property
    def better(self) -> list[Flip]:
        """Flips to a higher score."""
        return [flip for flip in self.flips if flip.after > flip.before]


@dataclass(frozen=True)
class Outcome:
    """All comparisons of a gate; ``new`` names students and protocols that only the run has, which are not compared."""

    comparisons: tuple[Comparison, ...]
    alpha: float
    new: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """FAIL if any comparison fails, PASS if all pass, INCONCLUSIVE otherwise."""
        found = {comparison.verdict for comparison in self.comparisons}
        return next(verdict for verdict in (FAIL, INCONCLUSIVE, PASS) if verdict in found)

    def count(self, verdict: str) -> int:
        """How many comparisons have a verdict."""
        return sum(comparison.verdict == verdict for comparison in self.comparisons)


def measure(run: Bootstrap, baseline: Bootstrap) -> Measured:
    """Return the paired difference of two bootstraps over the same resamples.

    Raises:
        UserError: for different questions, or resamples of which most lack a part of the benchmark.
    """
    found = paired(run, baseline)
    strata = run.tables[0].strata
    _, sizes = np.unique(strata, return_counts=True)
    # A part with one cluster shows no variation, so nothing can be said of the error (identical students aside).
    df = float(len(strata) - len(sizes)) if sizes.min() > 1 else 0.0
    # A bootstrap of C clusters has the variance of a sample of C divided by C, not by C - 1. The second factor allows for one
    # more cluster that differs than the sample happens to hold, as Agresti and Min's pseudo-counts do.
    apart = found.clusters_apart
    sampling = found.sampling_se**2 * len(strata) / df * (1.0 + 1.0 / max(apart, 1)) if df > 0 else math.inf
    terms = [(v, f) for v, f in [(sampling, df), *_training(run, baseline)] if v > 0.0]
    total = sum(variance for variance, _ in terms)
    if len(terms) > 1 and math.isfinite(total):
        df = total**2 / sum(variance**2 / freedom for variance, freedom in terms)
    return Measured(found.value, math.sqrt(total), df, found.clusters_apart)


def _training(run: Bootstrap, baseline: Bootstrap) -> list[tuple[float, float]]:
    """Return (variance of the mean over trainings, degrees of freedom): of each side, or of the difference paired by seed."""
    if run.labels == baseline.labels:
        sides = [run.per_seed - baseline.per_seed]
    else:
        sides = [run.per_seed, baseline.per_seed]
    return [(float(np.var(side, ddof=1)) / len(side), len(side) - 1.0) for side in sides if len(side) > 1]


def judge(measured: Sequence[Measured], margins: Sequence[float], alpha: float) -> list[tuple[str, float, float]]:
    """Return (verdict, adjusted p of FAIL, adjusted p of PASS) for each comparison; Holm over all of them.

    Args:
        measured: differences; margins: > 0, in the same units; alpha: one-sided level of all of them together.
    """
    fail = holm([m.p_below(-margin) for m, margin in zip(measured, margins, strict=True)])
    fine = holm([m.p_above(-margin) for m, margin in zip(measured, margins, strict=True)])
    verdicts = [FAIL if f <= alpha else PASS if p <= alpha else INCONCLUSIVE for f, p in zip(fail, fine, strict=True)]
    return list(zip(verdicts, fail, fine, strict=True))


def needed(measured: Measured, margin: float, n: int, alpha: float) -> int | None:
    """Return how many questions would decide an open comparison at one-sided ``alpha`` with 80 % power, or None.

    At least as many as let the clusters that differ, at their present share, pass the sign test's floor.
    """
    distance = measured.difference + margin
    if not math.isfinite(measured.error):
        return None
    found = needed_n(n, measured.error, distance, 1.0 - alpha)
    if found is None:
        return None
    floor = n * math.log2(1.0 / alpha) / measured.clusters_apart if distance < 0 or measured.error == 0.0 else 0.0
    return max(found, math.ceil(floor), n + 1)
