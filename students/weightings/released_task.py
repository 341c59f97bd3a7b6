"""The released code's task level: 1/2 e^-s per channel, CE included, s clamped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from students.batch import wide

from . import _base

#: Beyond this |s| is clamped, and gets no gradient: it never returns (METHOD 2.6, row 11).
CLAMP = 5.0


class Weighting(_base.Weighting):
    """sum_k 1/2 e^{-s_k} l_k + 1/2 s_k, s = 0 at the start (mobilevlm/train/weighting.py at 656ce71; METHOD 2.6).

    Every loss starts at weight 1/2; the implied beta = 1/2 e^-s has d = 1 and stays in [.0034, 74.2]. The released code
    feeds it soft cross-entropies, so any loss >= 0 is accepted. The total is linear in the losses, so it does not depend on
    the micro-batch. The released trainer's learning rate is ``lr_multiple=1000``.
    """

    weighs_ce = True
    nonnegative = True
    rate = 10.0

    def __init__(self, channels: tuple[str, ...], feature_dim: int | None = None, d: float | Mapping[str, float] = 1.0) -> None:
        super().__init__(channels, feature_dim, d)
        self.s = nn.Parameter(torch.zeros(len(channels)))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return 1/2 e^-s and 1/2 s, the same for each of the B samples."""
        s = wide(self.s).clamp(-CLAMP, CLAMP)
        return inputs.spread(0.5 * (-s).exp(), self.channels), inputs.spread(0.5 * s, self.channels)
