"""The settings of a distillation run. No torch here, so that presets can be checked without it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pydantic

from harness.base import Strict

Count = Annotated[int, pydantic.Field(ge=1)]
Rate = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Decay = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]

Part = Literal["language", "projector", "tower"]
#: Tokens that a teacher may need beyond the student's for the part of a row that the student's limit left.
ROOM = 4096


class Lora(Strict):
    """Low-rank matrices beside the language model's linear layers, which stay as they are until the student is saved.

    Attributes:
        rank: inner width of the matrices.
        alpha: the product is scaled by ``alpha / rank``.
        dropout: share of the inputs left out in training.
        targets: last words of the layers' names (``q_proj``), or None for all linear layers of the decoder blocks.
    """

    rank: Count = 128
    alpha: Count = 256
    dropout: Share = 0.05
    targets: tuple[str, ...] | None = None


class DistilOptions(Strict):
    """How a student learns.

    Attributes:
        steps: optimiser steps; or give ``epochs``.
        rows: rows per step: packed rows, or conversations of a stream (the global batch).
        turns: most questions in one packed row.
        lr: AdamW's peak rate; with Muon it is for embeddings, norms and projector.
        muon_lr: Muon's peak rate, for the language model's hidden matrices.
        weighting_lr: AdamW's rate for the weighting, times the weighting's own ``rate``; or ``lr`` times its ``lr_multiple``
            where it has one. Constant, because beta must keep following d / (2 l) while l falls; a cosine would freeze it on
            the way.
        micro_rows: rows per forward pass, or None for all of a step's at once. Changes memory and time; the student's
            trajectory only by rounding, unless a weighting says that it depends on it.
        warmup: steps of linear warm-up of the student's rates.
        clip: largest norm of the student's gradient; the weighting's is not clipped.
        betas_every: steps between two records of every sample's beta; the first and the last step are always recorded.
        flush_every: steps between two reads of the device: losses are written, and checked to be finite, this often.
        precision: "no" for float32, "bf16" for autocast over float32 master weights (losses and weighting stay float32).
        epochs: passes over the data, instead of ``steps``; a last step that would not be full is left out.
        optimiser: "muon" for hidden matrices with AdamW for the rest, under a warm-up times a cosine down to 2 %; "adamw" for
            everything, under a warm-up followed by a cosine down to 0 (the published trainings').
        weight_decay: AdamW's, on parameters of two and more dimensions; None for the optimiser's own: 0.01 on everything beside
            Muon (which has 0.05), 0 for "adamw".
        betas: AdamW's; None for (0.9, 0.98) beside Muon and (0.9, 0.999) for "adamw".
        projector_lr: AdamW's peak rate for the projector; None for ``lr``.
        warmup_ratio: warm-up as a share of the steps, rounded up, instead of ``warmup``.
        max_length: tokens a row of a stream is cut to; None for whole rows.
        overlong: what becomes of a row of which ``max_length`` leaves nothing to learn: "stop" names it, "replace" lets the
            next row of its kind take its place, counted.
        template: conversation format of streams ("plain", "v1" for mobilevlm); None for the processor's own.
        gradient_checkpointing: recompute the blocks' activations in the backward pass instead of keeping them; "selective":
            all but matrix products and attention, nearly as fast as keeping them (docs/performance.md).
        lora: learn low-rank matrices in place of the language model's own; None to learn all of it.
        learn: the parts that learn.
        save_every: steps between two resume points; None for no resume points.
        grouping: "modality_length" puts rows with and without images into steps of their own, rows of like length together.
        megabatch: with grouping, rows of one kind that are sorted together, a divisor of ``rows``; None for ``rows``.
        live_teacher: ask the teacher at every step, where students would read its cached signal.
        teacher_dtype: what the teacher's weights are stored in.
        frozen_dtype: what the matrices of the student's frozen parts are kept in while it trains; the checkpoint holds the
            base's values.
    """

    steps: Count | None = None
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
    epochs: Rate | None = None
    optimiser: Literal["muon", "adamw"] = "muon"
    weight_decay: Decay | None = None
    betas: tuple[Share, Share] | None = None
    projector_lr: Rate | None = None
    warmup_ratio: Share | None = None
    max_length: Count | None = None
    overlong: Literal["stop", "replace"] = "stop"
    template: str | None = None
    gradient_checkpointing: Literal[True, False, "selective"] = False
    lora: Lora | None = None
    learn: tuple[Part, ...] = ("language", "projector")
    save_every: Count | None = None
    grouping: Literal["none", "modality_length"] = "none"
    megabatch: Count | None = None
    live_teacher: bool = False
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _fits(self) -> DistilOptions:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of them")
        if not self.learn or len(set(self.learn)) != len(self.learn):
            raise ValueError(f"learn is {list(self.learn)}; allowed: one or more of language, projector, tower, each once")
        if self.lora is not None and self.optimiser != "adamw":
            raise ValueError("lora needs optimiser: adamw; Muon is for whole matrices")
        if self.lora is not None and "language" not in self.learn:
            raise ValueError("lora adapts the language model, which learn leaves out")
        if self.frozen_dtype == "bfloat16" and self.precision != "bf16":
            raise ValueError("frozen_dtype: bfloat16 needs precision: bf16")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _dump(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later options at their defaults: what was done without them has the same digest as ever."""
        fields = type(self).model_fields
        return {k: v for k, v in dump(self).items() if k not in LATER or getattr(self, k) != fields[k].default}

    @property
    def teacher_limit(self) -> int | None:
        """Tokens that a teacher reads of a row, None for all: enough to cover what the student's limit leaves of it."""
        return None if self.max_length is None else self.max_length + ROOM

    def warmup_steps(self, steps: int) -> int:
        """Return the steps of warm-up of a training of ``steps``."""
        return self.warmup if self.warmup_ratio is None else math.ceil(self.warmup_ratio * steps)


#: Options that came after runs had been recorded without them.
LATER = frozenset({
    "epochs", "optimiser", "weight_decay", "betas", "projector_lr", "warmup_ratio", "max_length", "overlong",
    "template", "gradient_checkpointing", "lora", "learn", "save_every", "grouping", "megabatch", "live_teacher",
    "teacher_dtype", "frozen_dtype",
})  # fmt: skip
