"""Beta-KD at task level: one learned weight per channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from students.batch import wide

from . import _base


class Weighting(_base.BetaWeighting):
    """One beta per channel, shared by all samples; starts at 1 and is drawn to d / (2 mean l).

    ``rate`` is 10: Adam moves a lone scalar by about one learning rate a step, and beta has to travel from 1 to d / (2 l),
    which is 5 at l = 0.1, within a short run.

    Options:
        weigh_ce: give CE a beta too, which the paper does not.
    """

    rate = 10.0

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        weigh_ce: bool = False,
    ) -> None:
        super().__init__(channels, feature_dim, d, weigh_ce)
        self.raw = nn.Parameter(torch.full((len(self.trainable),), _base.UNIT))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the same beta for each of the B samples, and its penalty."""
        return self.penalise(wide(self.raw).expand(len(inputs.like), -1))
