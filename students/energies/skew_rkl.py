"""Skew reverse KL (DistiLLM)."""

from __future__ import annotations

import math

from torch import Tensor

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """SRKL: T^2 KL(q || m), m = (1 - alpha) p + alpha q, p the teacher, q the student (DistiLLM, METHOD 2.1).

    In nats, [0, -T^2 log alpha]. alpha -> 0 is RKL, alpha -> 1 is 0. Nothing is ever floored. Keeps two [N, V] tensors for the
    backward pass.

    Args:
        alpha: share of the student in the mixture, in (0, 1).
        temperature: T > 0.
    """

    def __init__(self, alpha: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        self.alpha = _base.within("alpha", alpha, 0, 1, "()")
        self.bounded(-math.log(self.alpha))

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        found = _kl.kl(student, _kl.log_mixture(teacher, student.detach(), 1 - self.alpha))
        # d/dlog q = q [log(q / m) + alpha (1 - q / m)], and q / m = e^gap <= 1 / alpha
        slope = (1 - found.gap.exp()).mul_(self.alpha).add_(found.gap).mul_(found.a)
        return _kl.attach(found.values, (student, slope))
