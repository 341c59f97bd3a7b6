"""GradNorm: weights that give every loss a gradient of the same size, or more to those that lag."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.base import UserError
from students.registry import is_number, positive

from . import _base, _statistics

#: The absolute value is smoothed within this share of the mean norm, so that rounding moves no weight.
SMOOTH = 0.05


class Weighting(_statistics.StatisticWeighting):
    """Descends sum_k |G_k - mean G * r_k^alpha| over the weights, CE included (Chen et al. 2018; METHOD 2.6).

    G_k = w_k times the norm of l_k's gradient on a shared layer; r_k = (l_k / l_k(0)) over its mean: the relative inverse
    rate, from the losses of the step before. Steps are on log w and relative to mean G, so that weights stay positive and
    ``lr`` has no unit; the weights are renormalised to sum to K. A channel without gradient (no sample has it) stands aside.

    Options:
        alpha: >= 0, how strongly a loss that lags is favoured.
        lr: of the weights.
    """

    weighs_ce = True
    additive = True  # the weights are state alone; the batch at hand is never read
    w: Tensor
    initial: Tensor

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        alpha: float = 1.5,
        lr: float = 0.025,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        if not is_number(alpha) or alpha < 0:
            raise UserError(f"alpha is {alpha!r}; allowed: a finite number >= 0")
        self.alpha, self.lr = float(alpha), positive("lr", lr)
        self.needs = frozenset({"losses", "gradient_norms"})
        self.register_buffer("w", torch.ones(len(channels)))
        self.register_buffer("initial", torch.zeros(len(channels)))

    @torch.no_grad()
    def on_optimiser_step(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Keep the last step's mean losses, and each channel's first.

        Raises:
            ValueError: for other channels than this was built with.
        """
        new = self.taken == 0
        super().on_optimiser_step(step, losses)
        self.initial.copy_(torch.where(new, self.mean, self.initial))

    @torch.no_grad()
    def after_backward(self, gradient_norms: Mapping[str, Tensor]) -> None:
        """Move the weights towards gradients of norm mean G * r^alpha.

        Raises:
            ValueError: for other channels than this was built with.
        """
        _statistics.checked(gradient_norms, self.channels)
        norms = torch.stack([gradient_norms[c].detach() for c in self.channels]).to(self.w.dtype)
        there = norms != 0  # NaN is there, and stops the run
        size = there.sum().clamp(min=1)
        ratio = torch.where(self.taken > 0, self.mean / self.initial.clamp(min=_statistics.FLOOR), 1.0)
        ratio = ratio / (torch.where(there, ratio, 0.0).sum() / size)
        weighted = self.w * norms
        mean = weighted.sum() / size
        off = ((weighted - mean * ratio**self.alpha) / (SMOOTH * mean)).clamp(-1, 1)
        moved = torch.where(there, self.w * (-self.lr * off * weighted / mean).exp(), self.w)
        self.w.copy_(moved * (len(self.channels) / moved.sum()))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the weights, the same for each of the B samples, and no regulariser."""
        return inputs.spread(self.w, self.channels), {}
