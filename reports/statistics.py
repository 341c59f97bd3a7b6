"""Intervals and paired differences from resampled per-question scores.

:mod:`reports.resampling` makes the draws and :mod:`reports.decisions` the tests; here they become what a report prints.
docs/statistics.md says which method is used where, and the coverage that was measured.

Sources: percentile and BCa intervals, Efron & Tibshirani 1993, ch. 13-14 (BCa's acceleration of several strata as in Davison
& Hinkley 1997, eq. 5.26); Wilson 1927 for a proportion of independent units; exact McNemar test; Holm 1979.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from harness.base import UserError
from reports import decisions
from reports.decisions import NonInferiority as NonInferiority
from reports.decisions import holm as holm
from reports.decisions import mcnemar as mcnemar
from reports.decisions import needed_n as needed_n
from reports.decisions import non_inferiority as non_inferiority
from reports.resampling import LEVEL as LEVEL
from reports.resampling import RESAMPLES as RESAMPLES
from reports.resampling import Bootstrap as Bootstrap
from reports.resampling import Floats as Floats
from reports.resampling import ProtocolFacts as ProtocolFacts
from reports.resampling import bootstrap as bootstrap
from reports.resampling import bootstrap_mean as bootstrap_mean
from reports.resampling import bootstrap_tables as bootstrap_tables
from reports.resampling import cluster_counts as cluster_counts
from reports.resampling import combine as combine
from reports.resampling import paired_spread, spread
from tasks.aggregate import ClusterSums

#: Below this many clusters the percentile interval is known to be too narrow; the interval then says so.
FEW_CLUSTERS = 30


@dataclass(frozen=True)
class Interval:
    """One student's number with its interval.

    Attributes:
        value: in the protocol's unit (percent 0-100, MME points) or the measure's own.
        low, high: the interval's ends in the same unit, with all variation that was measured; None where no interval can be
            given, and ``note`` says why.
        n: questions; clusters: the units that were resampled; seeds: the number of trainings averaged.
        method: how the interval was made, a few words.
        note: a caveat worth printing, or None.
        sampling_se: standard error from the sampling of questions alone; None where not estimated.
        training_sd: standard deviation of the number between trainings; None with one training: unmeasured.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    seeds: int
    method: str
    note: str | None = None
    sampling_se: float | None = None
    training_sd: float | None = None


@dataclass(frozen=True)
class Difference:
    """One student minus another on the same questions.

    Attributes:
        value, low, high: in the unit of the number compared; exactly 0 for two students that score alike.
        n, clusters: questions and clusters that both answered.
        seeds: trainings averaged on either side.
        above, below: discordant questions: those where the first student scores higher, and lower (mean over seeds).
        clusters_apart: clusters to which the two contribute differently.
        p: two-sided p-value of "no difference" by ``test``; p_adjusted: after Holm over the ``family`` numbers compared
            together (:func:`adjust`), equal to ``p`` where only one was.
        resolved: ``p_adjusted`` is at most 1 - level, and enough clusters differ for an exact test to be able to reject.
        test: ``exact McNemar`` or ``bootstrap``.
        discordant: units (clusters) right for the first student alone, and for the second alone, where McNemar applies.
        detectable: the smallest true difference that these questions (and trainings) would have shown with 80 % power, in a
            two-sided test at 1 - level, uncorrected; None where no cluster differs, so that nothing can be estimated.
        se: standard error with all variation measured; sampling_se, training_sd: as in :class:`Interval`.
        draws: float64 [resamples], finite: for tests against other bounds (:func:`non_inferiority`).
        method, note: as in :class:`Interval`.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    seeds: tuple[int, int]
    above: int
    below: int
    clusters_apart: int
    resolved: bool
    method: str
    note: str | None
    p: float
    p_adjusted: float
    family: int
    test: str
    discordant: tuple[int, int] | None
    detectable: float | None
    se: float
    sampling_se: float
    training_sd: float | None
    level: float
    draws: Floats = dataclasses.field(repr=False, compare=False)


# ---- summaries -------------------------------------------------------------------------------------------------------------


def percentile_ends(draws: Floats, level: float) -> tuple[float, float]:
    """Return order statistics that mirror each other, so that negated draws give exactly the negated interval.

    They are the (R + 1) alpha / 2-th from either end: zero lies outside just when :func:`decisions.p_two_sided` is at most
    alpha.
    """
    ordered = np.sort(draws)
    skip = max(math.floor((1.0 - level) / 2.0 * (len(ordered) + 1.0) + 1e-9) - 1, 0)
    return float(ordered[skip]), float(ordered[-1 - skip])


def bca_ends(draws: Floats, value: float, influence: Floats, strata: NDArray[np.int64], level: float) -> tuple[float, float]:
    """Return the BCa interval: percentiles moved for the draws' bias and for a spread that changes with the number.

    Args:
        draws: float64 [R]; value: the number itself; influence: float64 [C], the number without each cluster;
        strata: [C] labels within which clusters were drawn.
    """
    ordered, count = np.sort(draws), len(draws)
    below = (draws < value).sum() + 0.5 * (draws == value).sum()
    bias = float(stats.norm.ppf(np.clip(below / count, 0.5 / count, 1.0 - 0.5 / count)))
    cubes = squares = 0.0
    for label in np.unique(strata):
        own = influence[strata == label]
        pull = (own.mean() - own) * (len(own) - 1.0) / len(own)
        cubes += float((pull**3).sum())
        squares += float((pull**2).sum())
    acceleration = cubes / (6.0 * squares**1.5) if squares > 0.0 else 0.0
    ends = []
    for z in stats.norm.ppf([(1.0 - level) / 2.0, (1.0 + level) / 2.0]):
        moved = bias + z
        ends.append(float(stats.norm.cdf(bias + moved / (1.0 - acceleration * moved))))
    first = max(math.floor(ends[0] * (count + 1.0) + 1e-9) - 1, 0)
    last = max(math.floor((1.0 - ends[1]) * (count + 1.0) + 1e-9) - 1, 0)
    return float(ordered[min(first, count - 1)]), float(ordered[max(count - 1 - last, 0)])


def _proportion(tables: Sequence[ClusterSums]) -> tuple[int, int] | None:
    """(right, clusters) if the number is a plain share of clusters that are each wholly right or wrong, else None."""
    first = tables[0]
    if any(not np.array_equal(first.sums, t.sums) for t in tables[1:]):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        each = first.value(first.sums)
        running = first.value(np.cumsum(first.sums, axis=0))
    if not np.isin(each, (0.0, 100.0)).all():
        return None
    # A share is the running mean of its units; F1, points and unequal clusters are not.
    expected = np.cumsum(each) / np.arange(1, len(each) + 1)
    if not np.allclose(running, expected, rtol=0.0, atol=1e-9):
        return None
    return int((each == 100.0).sum()), len(each)


def _influence(sample: Bootstrap) -> Floats:
    """float64 [C]: the number, mean over trainings, without each cluster."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.mean([t.value(t.sums.sum(axis=0) - t.sums) for t in sample.tables], axis=0))


def _ends(sample: Bootstrap, draws: Floats, level: float) -> tuple[float, float, str]:
    """Return the interval's ends and the method."""
    if not sample.parts:
        influence = _influence(sample)
        if np.isfinite(influence).all():
            return (*bca_ends(draws, sample.value, influence, sample.tables[0].strata, level), "BCa cluster bootstrap")
    return (*percentile_ends(draws, level), "cluster bootstrap")


def summarise(sample: Bootstrap, level: float = LEVEL) -> Interval:
    """Turn a bootstrap into a value with its interval; see :func:`interval`."""
    clusters, n = sample.clusters, len(sample.questions)
    found = spread(sample)

    def made(low: float | None, high: float | None, method: str, note: str | None) -> Interval:
        sampling = found.sampling_se if math.isfinite(found.sampling_se) else None
        return Interval(sample.value, low, high, n, clusters, sample.seeds, method, note, sampling, found.training_sd)

    share = _proportion(sample.tables) if sample.tables else None
    if share is not None:
        right, units = share
        ends = stats.binomtest(right, units).proportion_ci(confidence_level=level, method="wilson")
        note = {0: "all wrong", units: "all right"}.get(right)
        return made(100.0 * float(ends.low), 100.0 * float(ends.high), "Wilson", note)
    undefined = int((~np.isfinite(found.draws)).sum())
    if undefined > 0.05 * len(found.draws):
        note = f"too few clusters: {undefined} of {len(found.draws)} resamples lack a part of the benchmark"
        return made(None, None, "none", note)
    draws = found.draws[np.isfinite(found.draws)]
    if np.ptp(draws) == 0.0:
        return made(None, None, "none", "no spread: every cluster scores the same, so no interval can be given")
    low, high, method = _ends(sample, draws, level)
    tables = [part.tables[0] for _, part in sample.parts] or [sample.tables[0]]
    alone = sum(int((np.unique(t.strata, return_counts=True)[1] == 1).sum()) for t in tables)
    caveats = [
        f"only {clusters} clusters, the interval is rough" if clusters < FEW_CLUSTERS else "",
        f"{alone} part(s) hold a single cluster, whose variation cannot be seen" if alone and clusters > 1 else "",
        f"{undefined} resamples lack a part of the benchmark and are left out" if undefined else "",
    ]
    return made(low, high, method, "; ".join(c for c in caveats if c) or None)


def _apart(a: Bootstrap, b: Bootstrap) -> int:
    """How many clusters contribute differently to the two."""
    if a.parts:
        return sum(_apart(one, other) for (_, one), (_, other) in zip(a.parts, b.parts, strict=True))
    return int((np.abs(a.mean_sums - b.mean_sums) > 1e-12).any(axis=1).sum())


def _comparable(a: Bootstrap, b: Bootstrap) -> bool:
    if a.key != b.key or not a.questions.index.equals(b.questions.index):
        return False
    pairs = zip(a.tables[:1], b.tables[:1], strict=True)
    return all(one.clusters == other.clusters and np.array_equal(one.strata, other.strata) for one, other in pairs)


def _discordant(a: Bootstrap, b: Bootstrap) -> tuple[int, int] | None:
    """Units right for one student alone, each way; None unless units are independent and each wholly right or wrong."""
    if not a.tables or a.seeds > 1 or b.seeds > 1 or _proportion(a.tables) is None or _proportion(b.tables) is None:
        return None
    one, other = (s.tables[0].value(s.tables[0].sums) == 100.0 for s in (a, b))
    return int((one & ~other).sum()), int((~one & other).sum())


def compare(a: Bootstrap, b: Bootstrap, level: float = LEVEL) -> Difference:
    """Turn two bootstraps over the same resamples into their paired difference; see :func:`difference`."""
    if not _comparable(a, b):
        raise UserError(f"{a.key[0]}: the two students answered different questions; a paired difference needs the same ones")
    per_question = a.questions.to_numpy() - b.questions.to_numpy()
    apart = _apart(a, b)
    found = paired_spread(a, b)
    undefined = int((~np.isfinite(found.draws)).sum())
    draws = found.draws[np.isfinite(found.draws)]
    if len(draws) <= 0.5 * len(a.draws):
        raise UserError(f"{a.key[0]}: most resamples lack a part of the benchmark; there are too few clusters to compare on")
    low, high = percentile_ends(draws, level)
    discordant = _discordant(a, b)
    p = decisions.p_two_sided(draws) if discordant is None else decisions.mcnemar(*discordant)
    p = 1.0 if apart == 0 else p
    # With m clusters apart the smallest two-sided p of an exact sign test is 2 * 0.5^m; a bootstrap knows no such floor.
    enough = 2.0 * 0.5**apart <= 1.0 - level
    note = None
    if apart == 0:
        note = "the two score alike on every question"
    elif not enough:
        note = f"only {apart} cluster{' differs' if apart == 1 else 's differ'}: too few to resolve anything at this level"
    elif undefined:
        note = f"{undefined} resamples lack a part of the benchmark and are left out"
    return Difference(
        value=a.value - b.value, low=low, high=high, n=len(a.questions), clusters=a.clusters, seeds=(a.seeds, b.seeds),
        above=int((per_question > 1e-12).sum()), below=int((per_question < -1e-12).sum()), clusters_apart=apart,
        resolved=enough and p <= 1.0 - level, method="paired cluster bootstrap", note=note, p=p, p_adjusted=p, family=1,
        test="bootstrap" if discordant is None else "exact McNemar", discordant=discordant,
        detectable=decisions.detectable(found.se, level, df=found.df) if found.se > 0.0 else None,
        se=found.se, sampling_se=found.sampling_se, training_sd=found.training_sd, level=level, draws=draws,
    )  # fmt: skip


def adjust(found: Sequence[Difference]) -> list[Difference]:
    """Correct differences that were looked at together (one pair of students on several benchmarks) by Holm's method."""
    adjusted = holm([d.p for d in found])
    out = []
    for d, p in zip(found, adjusted, strict=True):
        enough = 2.0 * 0.5**d.clusters_apart <= 1.0 - d.level
        out.append(dataclasses.replace(d, p_adjusted=p, family=len(found), resolved=enough and p <= 1.0 - d.level))
    return out


def interval(
    rows: pd.DataFrame, protocol: ProtocolFacts, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Return one student's number on one protocol with its interval.

    The interval is the percentile interval of the cluster bootstrap; where every cluster is wholly right or wrong and
    counts equally (one row each, or MMBench's circular groups), Wilson's interval, which stays honest at 0 and 100 %.

    Args, errors: as :func:`bootstrap`; level: the coverage aimed at, 0..1.
    """
    return summarise(bootstrap(rows, protocol, resamples, seed), level)


def difference(
    a_rows: pd.DataFrame,
    b_rows: pd.DataFrame,
    protocol: ProtocolFacts,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """Return student ``a`` minus student ``b`` on one protocol, paired by question, over the same resamples.

    Raises:
        UserError: as :func:`bootstrap`, and where the two answered different questions or protocol versions.
    """
    versions = [sorted(rows["protocol_version"].unique()) for rows in (a_rows, b_rows) if "protocol_version" in rows.columns]
    if len(versions) == 2 and versions[0] != versions[1]:
        raise UserError(f"{protocol.name}: protocol versions differ ({versions[0]} and {versions[1]}); not comparable")
    return compare(bootstrap(a_rows, protocol, resamples, seed), bootstrap(b_rows, protocol, resamples, seed), level)
