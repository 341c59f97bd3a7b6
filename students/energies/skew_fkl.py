"""Skew forward KL (DistiLLM)."""

from __future__ import annotations

import math

from torch import Tensor

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """SKL: T^2 KL(p || m), m = alpha p + (1 - alpha) q, p the teacher, q the student (DistiLLM, METHOD 2.1).

    In nats, [0, -T^2 log alpha]. alpha -> 0 is FKL, alpha -> 1 is 0. Nothing is ever floored. The released Beta-KD code leaves
    out the teacher's entropy here too. Keeps two [N, V] tensors for the backward pass.

    Args:
        alpha: share of the teacher in the mixture, in (0, 1).
        temperature: T > 0.
    """

    def __init__(self, alpha: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        self.alpha = _base.within("alpha", alpha, 0, 1, "()")
        self.bounded(-math.log(self.alpha))

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        found = _kl.kl(teacher, _kl.log_mixture(teacher, student.detach(), self.alpha))
        # d/dlog q = (1 - alpha) q (1 - p / m), and p / m = e^gap <= 1 / alpha; where p is 0, so is the ratio
        ratio = found.gap.exp().masked_fill_(found.a == 0, 0.0)
        slope = student.detach().exp().mul_(1 - ratio).mul_(1 - self.alpha)
        return _kl.attach(found.values, (student, slope))
