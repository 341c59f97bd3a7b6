"""Whom a learned weighting trusts: late per-sample weights against the teacher's errors and the injected label noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.frames import Missing, Run
from reports.measures import Estimates
from reports.ranks import separation
from reports.statistics import Interval

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
    spread = betas.groupby(["seed", "step"])["beta"].agg(["min", "max"])
    return bool((spread["max"] - spread["min"] > 1e-4 * spread["max"]).any())


def late(betas: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last quarter of the training with the weight's logarithm, minus infinity for a weight of 0."""
    rows: pd.DataFrame = betas[betas["step"] >= (1.0 - LATE) * betas["step"].max()]
    with np.errstate(divide="ignore"):
        return rows.assign(log=np.log(rows["beta"].to_numpy(dtype=np.float64)))


def complementary(run: Run) -> bool:
    """Whether labels are wrong only where the teacher is not blind, so that weights over all samples confuse the two."""
    try:
        truth = run.training
    except Missing:
        return False
    blind, noisy = (truth[flag].to_numpy(dtype=bool) for flag in ("blind", "noisy"))
    return bool(blind.any() and noisy.any() and not (blind & noisy).any())


def trusts(estimates: Estimates) -> list[Trust]:
    """Return one entry per student and channel whose weights vary between samples.

    Raises:
        Missing: where there is none.
        UserError: for a weight that is negative or not finite.
    """
    return estimates.once("trusts", lambda: _trusts(estimates))


def _trusts(estimates: Estimates) -> list[Trust]:
    found = []
    for (student, channel), rows in estimates.run.betas.groupby(["student", "channel"], sort=False):
        if channel == "ce" or not varies(rows):
            continue
        frame = late(rows)
        frame = frame.assign(wrong=~frame["teacher_correct"].astype(bool), noisy=frame["noisy"].astype(bool))
        weights = frame.groupby("id").agg(log=("log", "mean"), wrong=("wrong", "any"), noisy=("noisy", "any"))
        weights["beta"] = np.exp(weights["log"])
        ends = {}
        for flag in ("wrong", "noisy"):
            mask = weights[flag].to_numpy(dtype=bool)
            both = mask.any() and not mask.all()
            options = estimates.resamples, estimates.seed, estimates.level
            ends[flag] = separation(weights["log"].to_numpy(), mask, *options) if both else None
        found.append(Trust(str(student), str(channel), weights, ends["wrong"], ends["noisy"]))
    if not found:
        raise Missing("No student of this run has weights that differ between samples.")
    return found
