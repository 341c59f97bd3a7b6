"""Constant weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from students.registry import per_channel

from . import _base


class Weighting(_base.Weighting):
    """L_CE + sum_k lambda_k l_k with constant lambda (METHOD 2.6, "equal" at the default 1). Weighs any loss.

    Options:
        weights: one number >= 0 for every channel other than "ce", or one for each of them.
    """

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        weights: float | Mapping[str, float] = 1.0,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        self.constants = per_channel("weights", weights, self.trainable)

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the constants, [B] each, and no regulariser."""
        return {c: torch.full_like(inputs.like, value) for c, value in self.constants.items()}, {}
