"""RLW: random weights, drawn anew at every step; what does not beat it is noise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.base import UserError

from . import _base


class Weighting(_base.Weighting):
    """w = softmax(N(0, 1)), CE included, one draw per optimiser step (METHOD 2.6; LibMTL). The mean weight is 1 / K.

    The draws come from generators of its own, one for each pair of seed and step, so that they move nobody else's.

    Options:
        seed: whole number >= 0; drawn from torch's generator when this is built, unless given.
    """

    weighs_ce = True
    drawn: Tensor

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise UserError(f"seed is {seed!r}; allowed: a whole number >= 0 and < 2^31")
        self.seed = seed
        self.needs = frozenset({"losses"})  # for the call once per step; the losses themselves are not read
        self.register_buffer("drawn", self._draw(0))

    def _draw(self, step: int) -> Tensor:
        mixed = hashlib.sha256(f"{self.seed}/{step}".encode()).digest()[:4]  # torch's CPU generator reads 32 bits of a seed
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big"))
        return torch.randn(len(self.channels), generator=generator).softmax(0)

    def on_optimiser_step(self, step: int, losses: Mapping[str, Tensor]) -> None:  # noqa: ARG002 - random on purpose
        """Draw the weights of the step after ``step``."""
        self.drawn.copy_(self._draw(step))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return this step's draw, the same for each of the B samples, and no regulariser."""
        return inputs.spread(self.drawn, self.channels), {}
