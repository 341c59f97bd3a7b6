"""Intervals and paired differences by cluster bootstrap over per-question rows.

Every number of a report is a function of additive per-cluster sums (:mod:`tasks.aggregate`), so 2,000 resamples are one
matrix product: ``value(counts @ sums)``. The counts depend only on the clusters, the protocol and the seed: two students
on the same questions meet the same resamples, and the draws of their paired difference are the difference of their draws.

Sources: percentile interval, Efron & Tibshirani 1993, ch. 13; clusters resampled whole (within strata where the benchmark
fixes the number per part), Davison & Hinkley 1997, ch. 3; Wilson 1927 for a proportion of independent units.

Several seeds: the value is the mean over seeds of the protocol's number, under one resample of the clusters for all seeds.
For accuracies that equals averaging the scores within each question. The interval then covers the sampling of questions
only; training variation needs seeds as a second level of resampling, which this file does not do yet.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol as Shape

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from harness.base import UserError
from tasks.aggregate import ClusterSums, cluster_sums

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
#: Below this many clusters the percentile interval is known to be too narrow; the interval then says so.
FEW_CLUSTERS = 30


class ProtocolFacts(Shape):
    """What the statistics need to know about a protocol; :class:`tasks.Protocol` has it."""

    @property
    def name(self) -> str:
        """``benchmark@protocol``; it also picks the stream of random numbers."""

    @property
    def aggregation(self) -> str:
        """A name in :mod:`tasks.aggregate`."""


@dataclass(frozen=True)
class Interval:
    """One student's number with its interval.

    Attributes:
        value: in the protocol's unit (percent 0-100, MME points) or the measure's own.
        low, high: the interval's ends in the same unit; None where no interval can be given, and ``note`` says why.
        n: questions; clusters: the units that were resampled; seeds: the number of trainings averaged.
        method: how the interval was made, a few words.
        note: a caveat worth printing, or None.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    seeds: int
    method: str
    note: str | None = None


@dataclass(frozen=True)
class Difference:
    """One student minus another on the same questions.

    Attributes:
        value, low, high: in the unit of the number compared; exactly 0 for two students that score alike.
        n, clusters: questions and clusters that both answered.
        seeds: trainings averaged on either side.
        above, below: discordant questions: those where the first student scores higher, and lower (mean over seeds).
        clusters_apart: clusters to which the two contribute differently.
        resolved: the interval excludes zero, and enough clusters differ for an exact two-sided test to be able to reject.
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
    note: str | None = None


@dataclass(frozen=True)
class Bootstrap:
    """A number with its resampled draws, ready to be summarised or compared.

    Attributes:
        value: the number on all questions; draws: float64 [resamples], the number on each resample.
        tables: one :class:`ClusterSums` per seed, all over the same clusters.
        questions: mean score over seeds, indexed by question id, sorted.
        key: which resamples were drawn; two bootstraps can be compared only if their keys are equal.
    """

    value: float
    draws: Floats
    tables: tuple[ClusterSums, ...]
    questions: pd.Series
    key: tuple[str, int, int]

    @property
    def seeds(self) -> int:
        """How many trainings were averaged."""
        return len(self.tables)


# ---- resampling ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def cluster_counts(strata: tuple[int, ...], resamples: int, seed: int, key: str) -> Floats:
    """Return how often each cluster is drawn: [resamples, clusters]; the total within each stratum is fixed."""
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    labels = np.asarray(strata)
    counts = np.empty((resamples, len(labels)))
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        counts[:, where] = generator.multinomial(len(where), np.full(len(where), 1.0 / len(where)), size=resamples)
    counts.setflags(write=False)  # it is shared by everything that resamples these clusters
    return counts


def _split_seeds(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Split by ``seed`` (null for a given model); without the column, everything is one training."""
    if "seed" not in rows.columns:
        return [rows]
    return [part for _, part in rows.groupby("seed", dropna=False, sort=True)]


def _bootstrap(tables: Sequence[ClusterSums], questions: pd.Series, key: str, resamples: int, seed: int) -> Bootstrap:
    first = tables[0]
    for other in tables[1:]:
        if other.clusters != first.clusters or not np.array_equal(other.strata, first.strata):
            raise UserError(f"{key}: the seeds of a student answered different questions; they cannot be averaged")
    counts = cluster_counts(tuple(int(s) for s in first.strata), resamples, seed, key)
    draws = np.mean([t.value(counts @ t.sums) for t in tables], axis=0)
    value = float(np.mean([t.value(t.sums.sum(axis=0)) for t in tables]))
    if not np.isfinite(value):
        raise UserError(f"{key}: the score is not a number: a part of the benchmark holds no question at all")
    return Bootstrap(value, draws, tuple(tables), questions.sort_index(), (key, resamples, seed))


def bootstrap(rows: pd.DataFrame, protocol: ProtocolFacts, resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
    """Resample one student's scored questions on one protocol.

    Args:
        rows: the student's rows of ``scores.parquet`` (id, cluster, group, gold, prediction, score, and seed).
        protocol: names the aggregation.
        resamples: how many; seed: of the resampling, nothing to do with training.

    Raises:
        UserError: no rows, repeated ids within a seed, scores outside 0..1, seeds over different questions.
    """
    if rows.empty:
        raise UserError(f"{protocol.name}: there are no scored questions")
    tables = [cluster_sums(part, protocol.aggregation) for part in _split_seeds(rows)]
    return _bootstrap(tables, rows.groupby("id")["score"].mean(), protocol.name, resamples, seed)


def bootstrap_mean(
    rows: pd.DataFrame, column: str, resamples: int = RESAMPLES, seed: int = 0, pooled: bool = False
) -> Bootstrap:
    """Resample the mean of a per-question column: each protocol with equal weight or, pooled, each question.

    Clusters of the same name are drawn together across protocols, because a shared image makes them dependent.

    Args:
        rows: one student's rows with protocol, id, cluster, ``column`` (finite numbers), and seed.

    Raises:
        UserError: no rows, or a value that is not finite.
    """
    if rows.empty:
        raise UserError(f"{column}: there are no rows to average")
    bad = ~np.isfinite(rows[column].to_numpy(dtype=np.float64))
    if bad.any():
        raise UserError(f"{column}: question {rows['id'].iloc[int(np.flatnonzero(bad)[0])]!r} has no finite value")
    protocols = sorted(rows["protocol"].unique())
    key = f"{column}{' pooled' if pooled else ''}: {', '.join(protocols)}"
    index = rows["protocol"].astype(str) + "/" + rows["id"].astype(str)
    tables = [_mean_sums(part, column, protocols, pooled) for part in _split_seeds(rows)]
    questions = rows[column].astype(np.float64).groupby(index).mean()
    return _bootstrap(tables, questions, key, resamples, seed)


def _mean_sums(rows: pd.DataFrame, column: str, protocols: Sequence[str], pooled: bool) -> ClusterSums:
    """Sums [C, 2P]: per protocol the total of ``column`` and the number of questions."""
    codes, clusters = pd.factorize(rows["cluster"].astype(str), sort=True)
    which = np.asarray(pd.Categorical(rows["protocol"], categories=list(protocols)).codes, dtype=np.int64)
    cell = codes * len(protocols) + which
    size = len(clusters) * len(protocols)
    totals = np.bincount(cell, weights=rows[column].to_numpy(dtype=np.float64), minlength=size)
    sums = np.stack([totals, np.bincount(cell, minlength=size).astype(np.float64)], axis=-1)

    def value(total: Floats) -> Floats:
        parts = total.reshape(*total.shape[:-1], -1, 2)
        if pooled:
            parts = parts.sum(axis=-2, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample without a protocol is NaN, counted later
            return np.asarray((parts[..., 0] / parts[..., 1]).mean(axis=-1))

    strata = np.zeros(len(clusters), dtype=np.int64)
    return ClusterSums([str(c) for c in clusters], sums.reshape(len(clusters), -1), value, strata)


# ---- summaries -------------------------------------------------------------------------------------------------------------


def percentile_ends(draws: Floats, level: float) -> tuple[float, float]:
    """Return order statistics that mirror each other, so that negated draws give exactly the negated interval."""
    ordered = np.sort(draws)
    skip = int((1.0 - level) / 2.0 * len(ordered) + 1e-9)
    return float(ordered[skip]), float(ordered[-1 - skip])


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


def summarise(sample: Bootstrap, level: float = LEVEL) -> Interval:
    """Turn a bootstrap into a value with its interval; see :func:`interval`."""
    clusters = len(sample.tables[0].clusters)
    n = len(sample.questions)

    def made(low: float | None, high: float | None, method: str, note: str | None) -> Interval:
        return Interval(sample.value, low, high, n, clusters, sample.seeds, method, note)

    share = _proportion(sample.tables)
    if share is not None:
        right, units = share
        ends = stats.binomtest(right, units).proportion_ci(confidence_level=level, method="wilson")
        note = {0: "all wrong", units: "all right"}.get(right)
        return made(100.0 * float(ends.low), 100.0 * float(ends.high), "Wilson", note)
    undefined = int((~np.isfinite(sample.draws)).sum())
    if undefined > 0.05 * len(sample.draws):
        note = f"too few clusters: {undefined} of {len(sample.draws)} resamples lack a part of the benchmark"
        return made(None, None, "none", note)
    draws = sample.draws[np.isfinite(sample.draws)]
    if np.ptp(draws) == 0.0:
        return made(None, None, "none", "no spread: every cluster scores the same, so no interval can be given")
    low, high = percentile_ends(draws, level)
    alone = int((np.unique(sample.tables[0].strata, return_counts=True)[1] == 1).sum())
    caveats = [
        f"only {clusters} clusters, the interval is rough" if clusters < FEW_CLUSTERS else "",
        f"{alone} part(s) hold a single cluster, whose variation cannot be seen" if alone and clusters > 1 else "",
        f"{undefined} resamples lack a part of the benchmark and are left out" if undefined else "",
    ]
    return made(low, high, "cluster bootstrap", "; ".join(c for c in caveats if c) or None)


def compare(a: Bootstrap, b: Bootstrap, level: float = LEVEL) -> Difference:
    """Turn two bootstraps over the same resamples into their paired difference; see :func:`difference`."""
    first, second = a.tables[0], b.tables[0]
    if a.key != b.key or first.clusters != second.clusters or not a.questions.index.equals(b.questions.index):
        raise UserError(f"{a.key[0]}: the two students answered different questions; a paired difference needs the same ones")
    per_question = a.questions.to_numpy() - b.questions.to_numpy()
    moved = np.mean([t.sums for t in a.tables], axis=0) - np.mean([t.sums for t in b.tables], axis=0)
    apart = int((np.abs(moved) > 1e-12).any(axis=1).sum())
    draws = a.draws - b.draws
    undefined = int((~np.isfinite(draws)).sum())
    draws = draws[np.isfinite(draws)]
    if len(draws) <= 0.5 * len(a.draws):
        raise UserError(f"{a.key[0]}: most resamples lack a part of the benchmark; there are too few clusters to compare on")
    value = a.value - b.value
    low, high = percentile_ends(draws, level)
    # With m clusters apart the smallest two-sided p of an exact sign test is 2 * 0.5^m; a bootstrap knows no such floor.
    enough = 2.0 * 0.5**apart <= 1.0 - level
    note = None
    if apart == 0:
        note = "the two score alike on every question"
    elif not enough:
        note = f"only {apart} cluster(s) differ: too few to resolve anything at this level"
    elif undefined:
        note = f"{undefined} resamples lack a part of the benchmark and are left out"
    return Difference(
        value=value, low=low, high=high, n=len(a.questions), clusters=len(first.clusters), seeds=(a.seeds, b.seeds),
        above=int((per_question > 1e-12).sum()), below=int((per_question < -1e-12).sum()), clusters_apart=apart,
        resolved=enough and (low > 0.0 or high < 0.0), method="paired cluster bootstrap", note=note,
    )  # fmt: skip


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
