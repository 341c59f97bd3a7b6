"""What a number tells of a yes/no fact: rank correlation and separation, with cluster bootstraps in a few array operations.

Both are functions of how many flagged and how many other units hold each distinct value, so that a resample is a matter
of weights: ``[resamples, distinct values]`` of either kind. On the units themselves they equal ``scipy.stats.spearmanr``
and Mann-Whitney's U / nm, ties included (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError
from reports.statistics import LEVEL, RESAMPLES, Floats, Interval, cluster_counts, percentile_ends

Bools = NDArray[np.bool_]
#: From the mass of flagged and of other units at each distinct value, ascending ([..., G] each), to a number [...].
Statistic = Callable[[Floats, Floats], Floats]

#: Resamples that are worked on at a time, so that memory stays small.
_CHUNK = 250


@dataclass(frozen=True)
class Units:
    """The units of one training.

    Attributes:
        values: float64 [N]; minus infinity is allowed (the logarithm of a weight of zero), NaN is not.
        flag: bool [N].
        clusters: [N] names of what is drawn together (the image), any hashable kind; equal names are one cluster across
            trainings.
    """

    values: Floats
    flag: Bools
    clusters: Sequence[str]


def correlation(yes: Floats, no: Floats) -> Floats:
    """Spearman's rank correlation between values and flag, from masses [..., G]; NaN where either does not vary."""
    mass = yes + no
    total = mass.sum(axis=-1, keepdims=True)
    rank = np.cumsum(mass, axis=-1) - (mass - 1.0) / 2.0 - (total + 1.0) / 2.0  # mid-rank of each value, centred
    flagged = yes.sum(axis=-1, keepdims=True)
    shared = (yes * rank).sum(axis=-1)
    # total times the variance of the flag, n p (1 - p); a resample without units has none
    varied = np.divide(flagged * (total - flagged), total, out=np.zeros_like(total), where=total > 0)[..., 0]
    spread = (mass * rank**2).sum(axis=-1) * varied
    return np.asarray(np.divide(shared, np.sqrt(spread), out=np.full(shared.shape, np.nan), where=spread > 0))


def smaller(yes: Floats, no: Floats) -> Floats:
    """Probability that a flagged unit has the smaller value, ties half, from masses [..., G]; NaN where one kind lacks."""
    below = np.cumsum(yes, axis=-1) - 0.5 * yes  # flagged mass below each value of the others, ties half
    pairs = yes.sum(axis=-1) * no.sum(axis=-1)
    won = (below * no).sum(axis=-1)
    return np.asarray(np.divide(won, pairs, out=np.full(won.shape, np.nan), where=pairs > 0))


def larger(yes: Floats, no: Floats) -> Floats:
    """Probability that a flagged unit has the larger value, ties half: the area under the ROC curve (AUC)."""
    return 1.0 - smaller(yes, no)


class _Grouped:
    """Units of one training, sorted, with the position of each distinct value."""

    def __init__(self, units: Units, codes: NDArray[np.int64]) -> None:
        distinct, group = np.unique(units.values, return_inverse=True)
        if np.isnan(distinct).any():
            raise UserError("rank statistics: a value is not a number")
        order = np.argsort(group, kind="stable")
        self.flag, self.codes = units.flag[order], codes[order]
        self.starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])

    def masses(self, counts: Floats) -> tuple[Floats, Floats]:
        """[..., clusters] -> flagged and other mass [..., G]."""
        weight = counts[..., self.codes]
        yes = np.add.reduceat(weight * self.flag, self.starts, axis=-1)
        return yes, np.add.reduceat(weight, self.starts, axis=-1) - yes


def estimate(
    trainings: Sequence[Units],
    statistic: Statistic,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval | None:
    """Return a statistic, mean over trainings, with the interval of a cluster bootstrap that draws the same for all.

    The interval covers the sampling of clusters only, not the variation between trainings.

    Args:
        trainings: one entry per seed; statistic: :func:`correlation`, :func:`smaller` or :func:`larger`.

    Returns:
        None where the statistic is not defined in one of the trainings (no flagged unit, no other, or all values equal).

    Raises:
        UserError: for a value that is NaN.
    """
    names = sorted({name for units in trainings for name in units.clusters})
    place = {name: k for k, name in enumerate(names)}
    grouped = [_Grouped(u, np.array([place[name] for name in u.clusters], dtype=np.int64)) for u in trainings if len(u.flag)]
    if not grouped or len(grouped) < len(trainings):
        return None

    def mean(counts: Floats) -> Floats:
        return np.asarray(np.mean([statistic(*g.masses(counts)) for g in grouped], axis=0))

    value = float(mean(np.ones(len(names))))
    if not np.isfinite(value):
        return None
    counts = cluster_counts((0,) * len(names), resamples, seed, "ranks")
    draws = np.concatenate([mean(counts[k : k + _CHUNK]) for k in range(0, resamples, _CHUNK)])
    return _summary(value, draws, max(len(u.flag) for u in trainings), len(names), len(trainings), level)


def _summary(value: float, draws: Floats, n: int, clusters: int, seeds: int, level: float) -> Interval:
    """An interval, unless many resamples lack what the statistic needs."""
    defined = draws[np.isfinite(draws)]
    lost = len(draws) - len(defined)
    if lost > 0.05 * len(draws):
        note = f"too few clusters: {lost} of {len(draws)} resamples lack one of the two kinds"
        return Interval(value, None, None, n, clusters, seeds, "none", note)
    low, high = percentile_ends(defined, level)
    left_out = f"{lost} resamples lack one of the two kinds and are left out" if lost else None
    return Interval(value, low, high, n, clusters, seeds, "cluster bootstrap", left_out)


def separation(values: Floats, flag: Bools, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Interval:
    """Return the probability that a flagged unit has the smaller value, ties counting half (Mann-Whitney's U / nm).

    0.5 means that the values know nothing of the flag. Units are resampled within the flagged and the unflagged.

    Args:
        values: float64 [N], one per independent unit; flag: bool [N].

    Raises:
        UserError: if either side is empty, or a value is NaN.
    """
    flagged = int(flag.sum())
    if flagged == 0 or flagged == len(flag):
        raise UserError("separation: needs flagged and unflagged units, one side is empty")
    units = Units(values, flag, ())
    grouped = _Grouped(units, np.arange(len(flag), dtype=np.int64))
    counts = cluster_counts(tuple(int(f) for f in flag), resamples, seed, "separation")
    draws = np.concatenate([smaller(*grouped.masses(counts[k : k + _CHUNK])) for k in range(0, resamples, _CHUNK)])
    low, high = percentile_ends(draws, level)
    value = float(smaller(*grouped.masses(np.ones(len(flag)))))
    return Interval(value, low, high, len(flag), len(flag), 1, "stratified bootstrap")
