"""From per-question scores to a benchmark's number, as per-cluster sums that a bootstrap can resample.

Every aggregation here is a function of *additive* statistics: each cluster (image, question group, pair) contributes a
row of K numbers, and ``value(sums.sum(axis=0))`` is the protocol's number. A cluster bootstrap is then one matrix
product: ``value(counts @ sums)`` with ``counts`` of shape [resamples, clusters].

The numbers equal lmms-eval 0.7.3's own aggregates (tested), from which they differ only where a docstring says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.base import UserError, unknown

Floats = NDArray[np.float64]
Value = Callable[[Floats], Floats]

_COLUMNS = ("id", "cluster", "group", "gold", "prediction", "score")


@dataclass(frozen=True)
class ClusterSums:
    """Additive sufficient statistics of one student on one protocol.

    Attributes:
        clusters: names of the C clusters, sorted, so that two students on the same questions agree row by row.
        sums: float64 [C, K].
        value: maps sums [..., K] to the protocol's number [...], in the protocol's unit. NaN where a part of the
            benchmark holds no question at all, which a resample within ``strata`` never produces.
        strata: int64 [C]: resample clusters within equal values. All zero except where the benchmark fixes the number
            of clusters per part (MME's categories).
    """

    clusters: list[str]
    sums: Floats
    value: Value
    strata: NDArray[np.int64]


def names() -> list[str]:
    """Return the names of the aggregations."""
    return sorted(_AGGREGATIONS)


def cluster_sums(rows: pd.DataFrame, aggregation: str) -> ClusterSums:
    """Return the per-cluster sums of one student's scored questions.

    Args:
        rows: one row per question with the columns id, cluster, group, gold, prediction, score (0..1).
        aggregation: one of :func:`names`.

    Raises:
        UserError: for an unknown aggregation, missing columns, no rows, a repeated id, a score outside 0..1 or NaN,
            or clusters that the aggregation cannot use (an MME pair that is not a pair).
    """
    if aggregation not in _AGGREGATIONS:
        raise unknown("aggregation", aggregation, _AGGREGATIONS)
    missing = [name for name in _COLUMNS if name not in rows.columns]
    if missing:
        raise UserError(f"scores lack the column(s) {', '.join(missing)}; needed: {', '.join(_COLUMNS)}")
    if rows.empty:
        raise UserError(f"aggregation {aggregation!r}: there are no scored questions")
    repeated = rows["id"][rows["id"].duplicated()]
    if len(repeated):
        raise UserError(f"aggregation {aggregation!r}: question {repeated.iloc[0]!r} is scored more than once")
    score = rows["score"].to_numpy(dtype=np.float64)
    bad = ~((score >= 0.0) & (score <= 1.0))  # also true for NaN
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        raise UserError(f"question {rows['id'].iloc[where]!r} has the score {score[where]}, expected 0..1")
    return _AGGREGATIONS[aggregation](rows.assign(score=score))


def aggregate(rows: pd.DataFrame, aggregation: str) -> float:
    """Return the protocol's number for scored questions; arguments and errors as :func:`cluster_sums`."""
    table = cluster_sums(rows, aggregation)
    return float(table.value(table.sums.sum(axis=0)))


def measures(rows: pd.DataFrame, aggregation: str) -> dict[str, dict[str, float]]:
    """Return what a benchmark publishes beside its number, in percent, per group and over ``all``; empty for most.

    POPE: accuracy, precision, recall, f1 and yes, the share of *replies* that are yes: lmms-eval's ``pope_yes_ratio`` is
    computed from the gold answers. A measure that is undefined (precision with no yes at all) is left out.
    """
    if aggregation not in ("pope_accuracy", "pope_mean_f1"):
        return {}
    parts = {str(name): part for name, part in rows[rows["group"] != ""].groupby("group", sort=True)}
    return {name: _yes_no(part) for name, part in {**parts, "all": rows}.items()}


def _yes_no(rows: pd.DataFrame) -> dict[str, float]:
    gold, said = _is_yes(rows["gold"]), _is_yes(rows["prediction"])
    tp, fp, fn = int((gold & said).sum()), int((~gold & said).sum()), int((gold & ~said).sum())
    found = {"accuracy": (rows["score"].sum(), len(rows)), "precision": (tp, tp + fp), "recall": (tp, tp + fn)}
    found |= {"f1": (2 * tp, 2 * tp + fp + fn), "yes": (said.sum(), len(rows))}
    return {name: 100.0 * float(part) / whole for name, (part, whole) in found.items() if whole}


def _is_yes(column: pd.Series[str]) -> NDArray[np.bool_]:
    return np.asarray(column.astype(str).str.strip().str.lower() == "yes", dtype=np.bool_)


def _by_cluster(rows: pd.DataFrame, columns: dict[str, Floats]) -> tuple[list[str], Floats]:
    """Sum ``columns`` (each [n]) within clusters; return the sorted cluster names and sums [C, K]."""
    codes, clusters = pd.factorize(rows["cluster"].astype(str), sort=True)
    stacked = np.stack([np.bincount(codes, weights=v, minlength=len(clusters)) for v in columns.values()], axis=1)
    return [str(c) for c in clusters], stacked.astype(np.float64)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is zero (nothing there to average)."""
    out = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _plain(clusters: list[str], sums: Floats, value: Value) -> ClusterSums:
    return ClusterSums(clusters, sums, value, np.zeros(len(clusters), dtype=np.int64))


def _percent(sums: Floats) -> Floats:
    """100 * [..., 0] / [..., 1]."""
    return _ratio(100.0 * sums[..., 0], sums[..., 1])


def _mean(rows: pd.DataFrame) -> ClusterSums:
    """100 * mean score over questions; sums are [score, questions]."""
    clusters, sums = _by_cluster(rows, {"score": rows["score"].to_numpy(), "n": np.ones(len(rows))})
    return _plain(clusters, sums, _percent)


def _pope_mean_f1(rows: pd.DataFrame) -> ClusterSums:
    """100 * F1 of "yes", averaged over POPE's splits with equal weight (LLaVA's evaluation).

    A reply that is not "yes" counts as not-yes: a miss where the gold answer is yes. lmms-eval leaves such replies out
    of its F1 altogether, which rewards them; with a parser that always says yes or no the two agree.
    Sums are [true positives, false positives, false negatives, questions] per split, splits sorted.
    """
    gold, said = _is_yes(rows["gold"]), _is_yes(rows["prediction"])
    split = rows["group"].astype(str).to_numpy()
    columns: dict[str, Floats] = {}
    for name in sorted(set(split)):
        here = split == name
        for key, mask in (("tp", gold & said), ("fp", ~gold & said), ("fn", gold & ~said), ("n", np.ones(len(rows), bool))):
            columns[f"{name}.{key}"] = (here & mask).astype(np.float64)
    clusters, sums = _by_cluster(rows, columns)

    def value(total: Floats) -> Floats:
        parts = total.reshape(*total.shape[:-1], -1, 4)
        tp, fp, fn, n = (parts[..., k] for k in range(4))
        positives = 2.0 * tp + fp + fn
        f1 = np.divide(2.0 * tp, positives, out=np.zeros_like(tp), where=positives > 0)  # 0 as in lmms-eval: no yes anywhere
        return np.asarray(100.0 * np.where(n > 0, f1, np.nan).mean(axis=-1))

    return _plain(clusters, sums, value)


def _mme(rows: pd.DataFrame) -> ClusterSums:
    """Sum over categories of 100 * accuracy + 100 * accuracy+ (both questions of a pair right), MME's points.

    Sums are [right answers, pairs with both right, pairs] per category, categories sorted; strata are the categories.
    """
    counts = rows.groupby("cluster").agg(n=("id", "size"), parts=("group", "nunique"))
    broken = counts[(counts["n"] != 2) | (counts["parts"] != 1)]
    if len(broken):
        name, row = broken.index[0], broken.iloc[0]
        raise UserError(f"MME counts pairs: {name!r} holds {row['n']} question(s) in {row['parts']} category(ies), not 2 in 1")
    category = rows["group"].astype(str).to_numpy()
    categories = sorted(set(category))
    right = rows["score"].to_numpy()
    columns = {c: np.where(category == c, right, 0.0) for c in categories}
    clusters, correct = _by_cluster(rows, columns)
    _, members = _by_cluster(rows, {c: (category == c).astype(np.float64) for c in categories})
    sums = np.stack([correct, (correct == 2.0).astype(np.float64), members / 2.0], axis=2).reshape(len(clusters), -1)

    def value(total: Floats) -> Floats:
        parts = total.reshape(*total.shape[:-1], -1, 3)
        points = _ratio(50.0 * parts[..., 0] + 100.0 * parts[..., 1], parts[..., 2])  # two questions per pair: 100 / 2
        return np.asarray(points.sum(axis=-1))

    return ClusterSums(clusters, sums, value, members.argmax(axis=1).astype(np.int64))


def _mmbench_circular(rows: pd.DataFrame) -> ClusterSums:
    """100 * share of question groups whose every rotation is right (MMBench's circular rule); sums are [all right, 1]."""
    clusters, sums = _by_cluster(rows, {"wrong": (rows["score"].to_numpy() < 1.0).astype(np.float64)})
    hit = (sums[:, 0] == 0.0).astype(np.float64)
    return _plain(clusters, np.stack([hit, np.ones(len(clusters))], axis=1), _percent)


_AGGREGATIONS: dict[str, Callable[[pd.DataFrame], ClusterSums]] = {
    "mean": _mean,
    "pope_accuracy": _mean,  # a pooled accuracy; a name of its own because POPE is usually reported by F1
    "pope_mean_f1": _pope_mean_f1,
    "mme": _mme,
    "mmbench_circular": _mmbench_circular,
}
