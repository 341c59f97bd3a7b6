"""Total variation distance."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """TVD: T^2 / 2 sum_k |p_k - q_k| (METHOD 2.1). A metric at T = 1, in [0, 1]; TVD^2 <= KL / 2 (Pinsker).

    Its gradient vanishes where the student is sure and wrong; where p_k = q_k the sub-gradient is 0. T^2 is a convention here:
    the distance does not scale as 1 / T^2. Keeps two [N, V] tensors for the backward pass.
    """

    symmetric = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        self.bounded(1.0)

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        with torch.no_grad():
            q = student.exp()
            gap = q - teacher.exp()
            values, slope = gap.abs().sum(-1) / 2, gap.sign().mul_(q).div_(2)
        return _kl.attach(values, (student, slope))
