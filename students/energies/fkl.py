"""Forward Kullback-Leibler divergence."""

from __future__ import annotations

from torch import Tensor

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """FKL: T^2 sum_k p_k (log p_k - log q_k), p the teacher, q the student, at temperature T (METHOD 2.1). In nats, [0, inf).

    The proper divergence: the released Beta-KD code leaves out the teacher's entropy (here ``soft_ce``), which has the same
    gradient but is not zero at a match, and so changes every weighting that reads the value. d/dz = T (q - p), always; a token
    the teacher allows and the student bans costs p * 1e4 instead of infinity and is counted in ``logs["floored"]``.

    Keeps two [N, V] tensors for the backward pass.
    """

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        found = _kl.kl(teacher, student)
        self.logs = {"floored": found.floored}
        return _kl.attach(found.values, (student, found.b - found.a))
