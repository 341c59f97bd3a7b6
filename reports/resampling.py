"""Resamples of per-question scores: one student's number with its draws, over clusters and, with several seeds, over seeds.

Every number of a report is a function of additive per-cluster sums (:mod:`tasks.aggregate`), so 2,000 resamples are one
matrix product: ``value(counts @ sums)``. The counts depend only on the clusters, the protocol and the seed: two students
on the same questions meet the same resamples, and the draws of their paired difference are the difference of their draws.

Sources: clusters resampled whole (within strata where the benchmark fixes the number per part), Davison & Hinkley 1997,
ch. 3; two levels, seeds then clusters, ch. 3.8, the seeds' deviations scaled by sqrt(S / (S - 1)) because S drawn from S
vary too little; the interval stretched to Student's t with Welch and Satterthwaite's degrees of freedom, because a handful
of trainings says little of their own variance (Hesterberg 2015, "expanded percentile").
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Mapping, Sequence
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


class ProtocolFacts(Shape):
    """What the statistics need to know about a protocol; :class:`tasks.Protocol` has it."""

    @property
    def name(self) -> str:
        """``benchmark@protocol``; it also picks the stream of random numbers."""

    @property
    def aggregation(self) -> str:
        """A name in :mod:`tasks.aggregate`."""


@dataclass(frozen=True)
class Bootstrap:
    """A number with its resampled draws, ready to be summarised or compared.

    Attributes:
        value: the number on all questions, mean over trainings.
        labels: one per training, sorted: its seed, or None for a given model.
        per_seed: float64 [S], the number of each training; seed_draws: float64 [S, resamples], under each resample of the
            clusters, the same for all trainings.
        tables: one :class:`ClusterSums` per training, all over the same clusters; empty where the number is made of ``parts``.
        questions: mean score over seeds, indexed by question id, sorted.
        key: which resamples were drawn; two bootstraps can be compared only if their keys are equal.
        parts: for a number made of others: (factor, bootstrap) each; see :func:`combine`.
    """

    value: float
    labels: tuple[int | None, ...]
    per_seed: Floats
    seed_draws: Floats
    tables: tuple[ClusterSums, ...]
    questions: pd.Series
    key: tuple[str, int, int]
    parts: tuple[tuple[float, Bootstrap], ...] = ()

    @functools.cached_property
    def draws(self) -> Floats:
        """float64 [resamples]: the mean over trainings under each resample of the clusters; sampling variation only."""
        return np.asarray(self.seed_draws.mean(axis=0))

    @property
    def seeds(self) -> int:
        """How many trainings were averaged."""
        return len(self.labels)

    @property
    def clusters(self) -> int:
        """How many units were resampled."""
        return sum(part.clusters for _, part in self.parts) if self.parts else len(self.tables[0].clusters)

    @functools.cached_property
    def mean_sums(self) -> Floats:
        """float64 [C, K]: per cluster, mean over trainings."""
        return np.asarray(np.mean([t.sums for t in self.tables], axis=0))


@dataclass(frozen=True)
class Spread:
    """Draws with both kinds of variation.

    Attributes:
        draws: float64 [resamples], stretched; NaN where a resample lacks a part of the benchmark.
        sampling_se: standard error from the sampling of clusters, the trainings held fixed.
        training_sd: standard deviation between trainings of the number (one training, not the mean); None where unmeasured.
        df: degrees of freedom; infinite with one training, whose variation is not in the draws.
    """

    draws: Floats
    sampling_se: float
    training_sd: float | None
    df: float

    @property
    def se(self) -> float:
        """Standard error of the number with all variation that was measured, before stretching."""
        finite = self.draws[np.isfinite(self.draws)]
        return float(finite.std(ddof=1)) / _stretch(self.df) if len(finite) > 1 else math.nan


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


def _split_seeds(rows: pd.DataFrame) -> dict[int | None, pd.DataFrame]:
    """Split by ``seed`` (null for a given model); without the column, everything is one training."""
    if "seed" not in rows.columns:
        return {None: rows}
    seeds = rows["seed"].to_numpy(dtype=np.float64, na_value=np.nan)
    found: dict[int | None, pd.DataFrame] = {int(s): rows[seeds == s] for s in np.unique(seeds[~np.isnan(seeds)])}
    return found | ({None: rows[np.isnan(seeds)]} if np.isnan(seeds).any() else {})


def bootstrap_tables(
    tables: Mapping[int | None, ClusterSums], questions: pd.Series, key: str, resamples: int, seed: int
) -> Bootstrap:
    """Resample tables of sums, one per training, all over the same clusters; ``key`` picks the stream of random numbers."""
    first = next(iter(tables.values()))
    for other in tables.values():
        if other.clusters != first.clusters or not np.array_equal(other.strata, first.strata):
            raise UserError(f"{key}: the seeds of a student answered different questions; they cannot be averaged")
    counts = cluster_counts(tuple(int(s) for s in first.strata), resamples, seed, key)
    seed_draws = np.stack([t.value(counts @ t.sums) for t in tables.values()])
    per_seed = np.array([float(t.value(t.sums.sum(axis=0))) for t in tables.values()])
    value = float(per_seed.mean())
    if not np.isfinite(value):
        raise UserError(f"{key}: the score is not a number: a part of the benchmark holds no question at all")
    made = tuple(tables.values())
    return Bootstrap(value, tuple(tables), per_seed, seed_draws, made, questions.sort_index(), (key, resamples, seed))


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
    tables = {label: cluster_sums(part, protocol.aggregation) for label, part in _split_seeds(rows).items()}
    return bootstrap_tables(tables, rows.groupby("id")["score"].mean(), protocol.name, resamples, seed)


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
    tables = {label: _mean_sums(part, column, protocols, pooled) for label, part in _split_seeds(rows).items()}
    questions = rows[column].astype(np.float64).groupby(index).mean()
    return bootstrap_tables(tables, questions, key, resamples, seed)


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


def combine(parts: Sequence[tuple[float, Bootstrap]], name: str) -> Bootstrap:
    """Return a weighted sum of numbers (the six benchmarks' average), their resamples drawn apart from each other.

    Args:
        parts: (factor, bootstrap of one protocol) each, in a fixed order.

    Raises:
        UserError: no part, or parts with other seeds or another number of resamples.
    """
    if not parts:
        raise UserError(f"{name}: there is nothing to average")
    samples = [sample for _, sample in parts]
    first = samples[0]
    for other in samples[1:]:
        if other.labels != first.labels or other.key[1:] != first.key[1:]:
            raise UserError(f"{name}: {other.key[0]} has other seeds or resamples than {first.key[0]}")
    key = (f"{name}: {', '.join(f'{factor:g} {sample.key[0]}' for factor, sample in parts)}", *first.key[1:])
    per_seed = np.sum([factor * sample.per_seed for factor, sample in parts], axis=0)
    seed_draws = np.sum([factor * sample.seed_draws for factor, sample in parts], axis=0)
    questions = pd.concat([s.questions.set_axis(s.key[0] + "/" + s.questions.index.astype(str)) for s in samples])
    return Bootstrap(float(per_seed.mean()), first.labels, per_seed, seed_draws, (), questions, key, tuple(parts))


# ---- seeds -----------------------------------------------------------------------------------------------------------------


def _stretch(df: float) -> float:
    """How much wider Student's interval is than the normal one."""
    return 1.0 if math.isinf(df) else float(stats.t.ppf(0.5 + LEVEL / 2.0, df) / stats.norm.ppf(0.5 + LEVEL / 2.0))


@functools.lru_cache(maxsize=64)
def _seed_choices(labels: tuple[int | None, ...], resamples: int, seed: int) -> NDArray[np.int64]:
    """Which trainings each resample draws: [S, resamples]; the same for every student with these seeds."""
    generator = np.random.default_rng([seed, zlib.crc32(f"trainings {labels}".encode())])
    return generator.integers(0, len(labels), size=(len(labels), resamples))


def _seed_deviation(seed_draws: Floats, labels: tuple[int | None, ...], seed: int) -> Floats:
    """What drawing trainings adds to the mean over trainings, [resamples]; all zero for a single one."""
    count = len(labels)
    if count == 1:
        return np.zeros(seed_draws.shape[1])
    choice = _seed_choices(labels, seed_draws.shape[1], seed)
    chosen = np.take_along_axis(seed_draws, choice, axis=0).mean(axis=0)
    return np.asarray(math.sqrt(count / (count - 1.0)) * (chosen - seed_draws.mean(axis=0)))


def _variance(values: Floats) -> float:
    """Variance between trainings; 0 for one, which has none to show."""
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _spread(value: float, base: Floats, deviation: Floats, training: Sequence[tuple[float, int]]) -> Spread:
    """Join sampling draws and the trainings' deviation; ``training`` holds (variance between trainings, their number)."""
    finite = base[np.isfinite(base)]
    sampling = float(finite.var(ddof=1)) if len(finite) > 1 else math.nan
    measured = [(v, n) for v, n in training if n > 1]
    between = sum(v / n for v, n in measured)
    scale = sum((v / n) ** 2 / (n - 1) for v, n in measured)
    df = (sampling + between) ** 2 / scale if scale > 0.0 else math.inf
    draws = value + _stretch(df) * (base + deviation - value)
    sd = math.sqrt(sum(v for v, _ in measured)) if measured else None
    return Spread(draws, math.sqrt(sampling), sd, df)


def spread(sample: Bootstrap) -> Spread:
    """Return one student's draws over seeds, then clusters; with one seed they are the draws over clusters."""
    deviation = _seed_deviation(sample.seed_draws, sample.labels, sample.key[2])
    return _spread(sample.value, sample.draws, deviation, [(_variance(sample.per_seed), sample.seeds)])


def paired_spread(a: Bootstrap, b: Bootstrap) -> Spread:
    """Return the draws of ``a`` minus ``b`` over the same clusters and, where both have the same seeds, the same seeds.

    Students of equal seed saw the same samples in the same order, so trainings are paired by it; otherwise the two draw
    their trainings apart.
    """
    value = a.value - b.value
    base = a.draws - b.draws
    if a.labels == b.labels:
        deviation = _seed_deviation(a.seed_draws - b.seed_draws, a.labels, a.key[2])
        return _spread(value, base, deviation, [(_variance(a.per_seed - b.per_seed), a.seeds)])
    deviation = _seed_deviation(a.seed_draws, a.labels, a.key[2]) - _seed_deviation(b.seed_draws, b.labels, b.key[2])
    return _spread(value, base, deviation, [(_variance(a.per_seed), a.seeds), (_variance(b.per_seed), b.seeds)])
