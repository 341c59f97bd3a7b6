"""Expected calibration error as a function of per-cluster sums, so that it is resampled like every other number."""

from __future__ import annotations

import numpy as np
import pandas as pd

from harness.base import UserError
from reports.resampling import Bootstrap, Floats, bootstrap_tables
from tasks.aggregate import ClusterSums

#: Equal bins of confidence (Guo et al. 2017, eq. 3).
BINS = 15


def _value(total: Floats) -> Floats:
    """[..., 2 * BINS + 1], the bins' confidence and score sums and the number of questions, to the error in 0..1."""
    gap = np.abs(total[..., :BINS] - total[..., BINS : 2 * BINS]).sum(axis=-1)
    return np.asarray(np.divide(gap, total[..., -1], out=np.full(gap.shape, np.nan), where=total[..., -1] > 0))


def ece_sums(clusters: pd.Series, confidence: Floats, score: Floats) -> ClusterSums:
    """Return per-cluster sums of one training.

    Args:
        clusters: [n] names; confidence, score: float64 [n], each 0..1; a soft score counts as it is.

    Raises:
        UserError: for a value outside 0..1 or NaN.
    """
    for name, values in (("confidence", confidence), ("score", score)):
        bad = ~((values >= -1e-6) & (values <= 1.0 + 1e-6))
        if bad.any():
            raise UserError(f"calibration: a {name} is {values[bad][0]}; expected 0..1")
    codes, names = pd.factorize(clusters.astype(str), sort=True)
    which = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    cell, size = codes * BINS + which, len(names) * BINS
    parts = [np.bincount(cell, weights=v, minlength=size).reshape(-1, BINS) for v in (confidence, score)]
    count = np.bincount(codes, minlength=len(names)).astype(np.float64)
    return ClusterSums([str(n) for n in names], np.column_stack([*parts, count]), _value, np.zeros(len(names), dtype=np.int64))


def bootstrap_ece(diagnosed: pd.DataFrame, scored: pd.DataFrame, key: str, resamples: int, seed: int) -> Bootstrap:
    """Resample one student's calibration error on one protocol.

    Args:
        diagnosed: id, seed, cluster, confidence; scored: id, seed, score of the same questions.

    Raises:
        UserError: where the two are not over the same questions, or a number is outside 0..1.
    """
    keys = ["seed", "id"]
    types = {"seed": "Int64", "id": "string"}
    left = diagnosed[[*keys, "cluster", "confidence"]].astype(types)
    joined = left.merge(scored[[*keys, "score"]].astype(types), on=keys, how="outer", validate="one_to_one", indicator=True)
    apart = joined["_merge"] != "both"
    if apart.any():
        row = joined[apart].iloc[0]
        raise UserError(
            f"{key}: question {row['id']!r} has a {'confidence' if row['_merge'] == 'left_only' else 'score'} alone"
        )
    tables: dict[int | None, ClusterSums] = {}
    for label, part in joined.groupby("seed", dropna=False, sort=True):
        values = (part[name].to_numpy(dtype=np.float64) for name in ("confidence", "score"))
        tables[None if pd.isna(label) else int(str(label))] = ece_sums(part["cluster"], *values)
    gap = (joined["confidence"] - joined["score"]).groupby(joined["id"]).mean()
    return bootstrap_tables(tables, gap, key, resamples, seed)
