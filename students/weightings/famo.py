"""FAMO: weights that make all losses fall at the same rate, from the change of each loss after a step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from students.registry import per_channel, positive, share

from . import _base, _statistics

#: Added to every loss before its logarithm (the official code's).
EPSILON = 1e-8


class Weighting(_statistics.StatisticWeighting):
    """Gradient of sum_k z_k log(l_k - b_k + eps) / c, c = sum_k z_k / (l_k - b_k + eps), z = softmax(xi); CE included.

    As weights: w_k = z_k / (l_k - b_k + eps) / c, which sum to 1 (Liu et al. 2023; METHOD 2.6). l_k is the last step's mean.
    After a step, xi follows the change of log(l_k - b_k) on the same batch by Adam, as in the official code. A loss below
    its bound b gives NaN, which stops the run.

    Options:
        lr: of xi.
        decay: weight decay of xi, added to its gradient.
        b: smallest value each loss can take, one number or one for each channel.
    """

    weighs_ce = True
    xi: Tensor
    first: Tensor
    second: Tensor
    updates: Tensor
    bound: Tensor

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        lr: float = 0.025,
        decay: float = 0.01,
        b: float | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        self.needs = frozenset({"losses", "second_forward"})
        self.lr, self.decay = positive("lr", lr), share("decay", decay)
        for name in ("xi", "first", "second", "updates"):
            self.register_buffer(name, torch.zeros(len(channels)))
        self.register_buffer("bound", torch.tensor(list(per_channel("b", b, channels).values())), persistent=False)

    def _log(self, mean: Tensor) -> Tensor:
        return (mean - self.bound + EPSILON).log()

    @torch.no_grad()
    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Move xi by one step of Adam; a channel that fell more than the others loses weight.

        Raises:
            ValueError: for other channels than this was built with.
        """
        fresh = self.means_of(losses)
        after = torch.stack([fresh.get(c, self.mean[k]).to(self.mean.dtype) for k, c in enumerate(self.channels)])
        fell = torch.where(self.taken > 0, self._log(self.mean) - self._log(after), 0.0)
        z = self.xi.softmax(0)
        gradient = z * (fell - (z * fell).sum()) + self.decay * self.xi
        self.updates += 1
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient.square(), 0.001)
        step = self.first / (1 - 0.9**self.updates) / ((self.second / (1 - 0.999**self.updates)).sqrt() + 1e-8)
        self.xi -= self.lr * step

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the weights, the same for each of the B samples, and no regulariser."""
        mean, known = self.current(inputs)
        logits = self.xi.log_softmax(0) - self._log(mean)
        return inputs.spread(logits.masked_fill(~known, -float("inf")).softmax(0), self.channels), {}
