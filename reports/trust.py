"""Whom a learned weighting trusts: late per-sample weights against the teacher's errors and the injected label noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.base import UserError
from reports.frames import Missing, Run
from reports.statistics import Interval, separation

#: Share of the training, at its end, whose weights are looked at.
LATE = 0.25


@dataclass(frozen=True)
class Trust:
    """One student's weights of one channel.

    Attributes:
        weights: one row per training sample: beta (geometric mean over the late steps and the seeds), wrong (the teacher's
            answer is), noisy (the label is).
        wrong, noisy: probability that a sample with a wrong teacher, or a noisy label, has the smaller weight than one
            without, with its interval; None where the run has no such sample, or no other.
    """

    student: str
    channel: str
    weights: pd.DataFrame
    wrong: Interval | None
    noisy: Interval | None


def varies(betas: pd.DataFrame) -> bool:
    """Whether weights differ between samples of one step: true of instance weights, not of task weights."""
    spread = betas.groupby(["seed", "step"])["beta"].agg(lambda b: float(b.max() / b.min()))
    return bool((spread > 1.0 + 1e-4).any())


def positive(betas: pd.DataFrame, run: Run) -> None:
    """Refuse weights that no logarithm takes: the run's file is damaged then, because beta > 0 by construction."""
    bad = ~((betas["beta"] > 0) & np.isfinite(betas["beta"]))
    if bad.any():
        row = betas[bad].iloc[0]
        path = run.folder / "students" / str(row["student"]) / f"seed{row['seed']}" / "betas.parquet"
        raise UserError(f"{path}: sample {row['id']!r} at step {row['step']} has the weight {row['beta']}, expected above 0")


def trusts(run: Run, resamples: int, seed: int, level: float) -> list[Trust]:
    """Return one entry per student and channel whose weights vary between samples.

    Raises:
        Missing: where there is none.
        UserError: for a weight that is not positive and finite.
    """
    positive(run.betas, run)
    found = []
    for (student, channel), rows in run.betas.groupby(["student", "channel"], sort=False):
        if channel == "ce" or not varies(rows):
            continue
        late = rows[rows["step"] >= (1.0 - LATE) * rows["step"].max()]
        frame = late.assign(
            log=np.log(late["beta"]), wrong=~late["teacher_correct"].astype(bool), noisy=late["noisy"].astype(bool)
        )
        weights = frame.groupby("id").agg(log=("log", "mean"), wrong=("wrong", "any"), noisy=("noisy", "any"))
        weights["beta"] = np.exp(weights["log"])
        ends = {}
        for flag in ("wrong", "noisy"):
            mask = weights[flag].to_numpy(dtype=bool)
            both = mask.any() and not mask.all()
            ends[flag] = separation(weights["log"].to_numpy(), mask, resamples, seed, level) if both else None
        found.append(Trust(str(student), str(channel), weights, ends["wrong"], ends["noisy"]))
    if not found:
        raise Missing("No student of this run has weights that differ between samples.")
    return found
