"""DWA: more weight for the losses that fall slowest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from students.registry import count, positive

from . import _base
from ._statistics import FLOOR, checked


class Weighting(_base.Weighting):
    """w = K softmax(r / T), r_k = l_k(t-1) / l_k(t-2), CE included (Liu et al. 2019; METHOD 2.6). The weights sum to K.

    Runs here have one epoch or less, so l(t-1) and l(t-2) are means over the last two complete windows of optimiser steps
    in place of epochs. Weights are 1 until there are two, and change only when a window ends.

    Options:
        temperature: T.
        window: optimiser steps per window.
    """

    weighs_ce = True
    takes_logs = True
    total: Tensor
    samples: Tensor
    last: Tensor
    before: Tensor

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        temperature: float = 2.0,
        window: int = 20,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        self.temperature, self.window = positive("temperature", temperature), count("window", window)
        self.needs = frozenset({"losses"})
        for name in ("total", "samples", "last", "before"):  # of the open window, and means of the two before it; 0 = none
            self.register_buffer(name, torch.zeros(len(channels)))

    @torch.no_grad()
    def on_optimiser_step(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Add a step's losses to the open window, and close it at its end.

        Raises:
            ValueError: for other channels than this was built with.
        """
        checked(losses, self.channels)
        if step == 0:  # the first batch comes again as step 1
            return
        self.total += torch.stack([losses[c].sum() for c in self.channels]).to(self.total.dtype)
        self.samples += self.samples.new_tensor([losses[c].numel() for c in self.channels])
        if step % self.window == 0:
            there = self.samples > 0  # a channel that nobody had in this window keeps its two windows
            self.before.copy_(torch.where(there, self.last, self.before))
            self.last.copy_(torch.where(there, self.total / self.samples, self.last))
            self.total.zero_()
            self.samples.zero_()

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the weights, the same for each of the B samples, and no regulariser."""
        ratio = torch.where(self.before == 0, 1.0, self.last / self.before.clamp(min=FLOOR))
        return inputs.spread(len(self.channels) * (ratio / self.temperature).softmax(0), self.channels), {}
