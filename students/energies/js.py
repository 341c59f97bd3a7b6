"""Generalised Jensen-Shannon divergence."""

from __future__ import annotations

import math

from torch import Tensor

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """JS: T^2 [b KL(p || m) + (1 - b) KL(q || m)], m = b p + (1 - b) q, p the teacher, q the student (METHOD 2.1).

    In nats, [0, T^2 H(b)] with H the binary entropy (ln 2 at b = .5). Symmetric at b = .5 only; swapping p and q equals b ->
    1 - b. Divided by b it tends to FKL for b -> 0, divided by 1 - b to RKL for b -> 1; the ends are refused, since the
    divergence itself is 0 there (TRL's code switches to FKL and RKL, and so jumps). The default is Beta-KD's and TAID's;
    DistiLLM's lam = .9 is the same. Keeps two [N, V] tensors for the backward pass.

    Args:
        b: weight of the teacher, in (0, 1).
        temperature: T > 0.
    """

    def __init__(self, b: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        self.b = _base.within("b", b, 0, 1, "()")
        self.symmetric = self.b == 0.5
        self.bounded(-self.b * math.log(self.b) - (1 - self.b) * math.log1p(-self.b))

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        middle = _kl.log_mixture(teacher, student.detach(), self.b)
        left, right = _kl.kl(teacher, middle), _kl.kl(student, middle)
        slope = (right.a * right.gap).mul_(1 - self.b)  # what flows through m cancels
        return _kl.attach(left.values * self.b + right.values * (1 - self.b), (student, slope))
