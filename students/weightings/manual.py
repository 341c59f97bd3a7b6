"""Weights by initial scale: each channel starts out as large as cross-entropy, and keeps that weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from students.registry import count

from . import _base, _statistics


class Weighting(_statistics.StatisticWeighting):
    """w_k = l_0(0) / l_k(0), frozen: the paper's "manual" baseline, which its code lacks (METHOD 2.6, row 7).

    l_0 is "ce", or the first channel where there is none; its own weight is 1. It divides by losses, but once and for all: a
    loss need not be 0 at a match, only >= 0.

    Options:
        n: how many steps' means the initial losses are averaged over; the weights move until then. A channel that no
            sample had at first is averaged over the first n steps that have it.
    """

    takes_logs = False
    nonnegative = True

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        n: int = 1,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        self.n = count("n", n)
        self.anchor = channels.index("ce") if "ce" in channels else 0

    def newest(self, step: int) -> Tensor:
        """Average the first n, then keep them."""
        closed = (self.taken >= self.n) | self.step_one_again(step, self.taken)
        return torch.where(closed, 0.0, 1 / (self.taken + 1))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the anchor's over each channel's initial loss, [B] each, and no regulariser."""
        mean, _ = self.current(inputs)
        mean = mean.clamp(min=_statistics.FLOOR)
        spread = inputs.spread(mean[self.anchor] / mean, self.channels)
        return {c: spread[c] for c in self.trainable}, {}
