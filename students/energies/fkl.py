"""Forward Kullback-Leibler divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _base


class Energy(_base.LogitsEnergy):
    """FKL: T^2 sum_k p_k (log p_k - log q_k), p the teacher, q the student, at temperature T (METHOD 2.1).

    The proper divergence: the released Beta-KD code leaves out the teacher's entropy, which has the same gradient but is not
    zero at a match, and so changes every weighting that reads the value. d/dz = T (q - p). In nats, [0, inf).
    A token the teacher allows and the student bans costs p * 1e4 instead of infinity and is counted in ``logs["floored"]``.
    """

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        p, q = teacher.exp(), student.exp()
        absent = p == 0  # not `p > 0`: that would turn a NaN into a silent zero
        self.logs = {"floored": ((student < _base.LOG_FLOOR) & ~absent).sum()}
        gap = teacher.masked_fill(absent, 0.0) - student.masked_fill(absent, 0.0).clamp(min=_base.LOG_FLOOR)
        # p log(p / q) - p + q has the same sum and gradient, but every term is >= 0 and nothing cancels near a match
        near = torch.where(gap.abs() < 0.5, gap, 0.0)  # e^-gap would overflow elsewhere
        return torch.where(gap.abs() < 0.5, p * (near + torch.expm1(-near)) + q * absent, p * gap - p + q).sum(-1)
