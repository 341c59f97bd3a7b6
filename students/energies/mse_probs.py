"""Squared distance of two probability vectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from harness.base import unknown

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """MSE-Probs: T^2 times the mean, or the sum, over k of (p_k - q_k)^2 (METHOD 2.1).

    The mean is what the Beta-KD code takes. It is at most 2 / V: about 1.6e-6 for random logits over 32000 tokens, out of the
    reach of any learned weight. The sum is in [0, 2]. Tokens that both sides ban (-inf: padding) do not count in V. T^2 is a
    convention here: the distance does not scale as 1 / T^2. Keeps two [N, V] tensors for the backward pass.

    Args:
        reduce: "mean" over the vocabulary, or "sum".
        temperature: T > 0.
    """

    symmetric = True
    bins = False  # a distance of coordinates, which one bin for many tokens makes larger

    def __init__(self, reduce: Literal["mean", "sum"] = "mean", temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if reduce not in ("mean", "sum"):
            raise unknown("reduce of energy 'mse_probs':", str(reduce), ("mean", "sum"))
        self.reduce = reduce
        self.bounded(2.0 if reduce == "sum" else 1.0)  # the mean's, 2 / V, is largest at V = 2

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        with torch.no_grad():
            q = student.exp()
            gap = q - teacher.exp()
            values, slope = gap.square().sum(-1), (2 * q).mul_(gap)
            if self.reduce == "mean":
                count = (torch.maximum(teacher, student) != -torch.inf).sum(-1)
                values, slope = values / count, slope.div_(count[:, None])
        return _kl.attach(values, (student, slope))
