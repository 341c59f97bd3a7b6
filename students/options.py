"""The settings of a distillation run. No torch here, so that presets can be checked without it."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from harness.base import Strict

Count = Annotated[int, pydantic.Field(ge=1)]
Rate = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class DistilOptions(Strict):
    """How a student learns.

    Attributes:
        steps: optimiser steps.
        rows: packed rows per step.
        turns: most questions in one row.
        lr: AdamW's peak rate, for embeddings, norms and projector; warm-up and cosine as in students/pretrain.py.
        muon_lr: Muon's peak rate, for the language model's hidden matrices.
        weighting_lr: AdamW's rate for the weighting, times the weighting's own ``rate``; or ``lr`` times its ``lr_multiple``
            where it has one. Constant, because beta must keep following d / (2 l) while l falls; a cosine would freeze it on
            the way.
        micro_rows: packed rows per forward pass, or None for all of a step's at once. Changes memory and time; the
            student's trajectory only by rounding, unless a weighting says that it depends on it.
        warmup: steps of linear warm-up of the student's rates.
        clip: largest norm of the student's gradient; the weighting's is not clipped.
        betas_every: steps between two records of every sample's beta; the first and the last step are always recorded.
        flush_every: steps between two reads of the device: losses are written, and checked to be finite, this often.
        precision: "no" for float32, "bf16" for autocast (losses and weighting stay float32).
    """

    steps: Count
    rows: Count = 24
    turns: Count = 8
    lr: Rate = 3e-3
    muon_lr: Rate = 1e-2
    weighting_lr: Rate = 3e-3
    warmup: int = pydantic.Field(default=40, ge=0)
    clip: Rate = 1.0
    betas_every: Count = 10
    flush_every: Count = 10
    micro_rows: Count | None = None
    precision: Literal["no", "bf16"] = "no"
