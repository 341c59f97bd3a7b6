"""Reverse Kullback-Leibler divergence."""

from __future__ import annotations

from torch import Tensor

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """RKL: T^2 sum_k q_k (log q_k - log p_k), p the teacher, q the student, at temperature T (METHOD 2.1). In nats, [0, inf).

    d/dz_k = T q_k (log(q_k / p_k) - RKL). A token the student allows and the teacher bans costs q * 1e4 instead of infinity
    and is counted in ``logs["floored"]``. Keeps two [N, V] tensors for the backward pass.
    """

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        found = _kl.kl(student, teacher)
        self.logs = {"floored": found.floored}
        return _kl.attach(found.values, (student, found.a * found.gap))
