"""Learned weights without a regulariser: the negative control, which collapses to 0."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import softplus

from students.batch import wide

from . import _base


class Weighting(_base.Weighting):
    """L_CE + sum_k softplus(a_k) l_k with learned a, starting at weight 1 (METHOD 2.6): ``beta_task`` without -log beta.

    Any loss >= 0 is accepted: below 0 the weight would grow without end instead of collapsing.
    """

    nonnegative = True
    rate = 10.0

    def __init__(self, channels: tuple[str, ...], feature_dim: int | None = None, d: float | Mapping[str, float] = 1.0) -> None:
        super().__init__(channels, feature_dim, d)
        self.raw = nn.Parameter(torch.full((len(self.trainable),), _base.UNIT))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the same weight for each of the B samples, and no regulariser."""
        return inputs.spread(softplus(wide(self.raw)), self.trainable), {}
