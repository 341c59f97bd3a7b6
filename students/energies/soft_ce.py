"""Soft cross-entropy: what the released code calls FKL."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """Soft CE: -T^2 sum_k p_k log q_k, p the teacher, q the student: the released Beta-KD code's "FKL" (METHOD 2.1).

    Not a divergence: at a match it is the teacher's entropy, up to log V, and not 0. The gradient is that of ``fkl``, the value
    is not, so every weighting that reads values is changed by it; those that rest on zero at a match refuse it. Kept to show
    what the release does. In nats, [0, inf); banned tokens as in ``fkl``. Keeps two [N, V] tensors for the backward pass.
    """

    zero_at_match = False

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        with torch.no_grad():
            p = teacher.exp()
            self.logs = {"floored": ((student < _kl.LOG_FLOOR) & (p != 0)).sum()}
            values = -(p * student.clamp(min=_kl.LOG_FLOOR)).sum(-1)
        return _kl.attach(values, (student, -p))
