"""One minus the cosine of two probability vectors."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from . import _base


class Energy(_base.LogitsEnergy):
    """Cosine-Probs: T^2 (1 - <p, q> / (|p| |q|)) (METHOD 2.1). In [0, 1] at T = 1, both vectors being non-negative.

    Computed as half the squared distance of the two unit vectors, which is the same number, never below zero and exactly zero
    at a match. The factor T^2 is the released code's convention; this energy does not itself scale as 1 / T^2.
    """

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        gap = normalize(teacher.exp(), dim=-1) - normalize(student.exp(), dim=-1)
        return gap.square().sum(-1) / 2
