"""Beta-KD without learning: beta = d / (2 l) in closed form, per sample or per channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.base import UserError
from students.registry import per_channel, positive, share, word

from . import _base, _statistics

LEVELS = ("instance", "task")


class Weighting(_statistics.StatisticWeighting):
    """L_CE + sum_k [beta_k sg(l_k) ...] at the minimum over beta: beta = d / (2 sg l), the control for *learning* it.

    The penalty -(d / 2) log beta is reported too, so that the total is the paper's objective at beta* (METHOD 2.6).

    Options:
        level: "instance" (each sample's own loss) or "task" (a moving average of the channel's mean loss).
        decay: of the moving average, bias-corrected; 0.9 unless given, and only allowed at level "task".
        floor: smallest loss that is divided by, so that a sample which the student matches almost exactly does not get an
            almost infinite weight; beta is at most d / (2 floor), 50 by default.
    """

    has_d = True

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        level: str = "instance",
        decay: float | None = None,
        floor: float = 0.01,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        if not self.trainable:
            raise UserError(f"weighting {self.name!r} needs a channel beside 'ce', got {list(channels)}")
        self.d = per_channel("d", d, self.trainable, above_zero=True)
        self.level, self.floor = word("level", level, LEVELS), positive("floor", floor)
        if self.level == "instance":
            if decay is not None:
                raise UserError(f"decay is {decay!r}; level 'instance' averages nothing, only level 'task' takes a decay")
            self.additive, self.needs = True, frozenset()
        self.decay = share("decay", 0.9 if decay is None else decay)

    def newest(self, step: int) -> Tensor:
        """Return (1 - decay) / (1 - decay^t): the bias-corrected moving average."""
        ahead = (1 - self.decay) / (1 - self.decay ** (self.taken + 1))
        return torch.where(self.step_one_again(step, self.taken), 0.0, ahead)

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return d / (2 l) and -(d / 2) log of it, [B] each; both without gradient."""
        losses = inputs.losses
        if self.level == "task":
            losses = inputs.spread(self.current(inputs)[0], self.channels)
        weights = {c: self.d[c] / (2 * losses[c].clamp(min=self.floor)) for c in self.trainable}
        return weights, {c: -0.5 * self.d[c] * w.log() for c, w in weights.items()}
