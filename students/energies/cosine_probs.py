"""One minus the cosine of two probability vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """Cosine-Probs: T^2 (1 - <p, q> / (|p| |q|)) (METHOD 2.1). In [0, 1] at T = 1, both vectors being non-negative.

    Computed as half the squared distance of the two unit vectors, which is the same number, never below zero and exactly zero
    at a match. The factor T^2 is the released code's convention; this energy does not itself scale as 1 / T^2. Dominated by
    the top token, and flat where the student is sure and wrong. Keeps two [N, V] tensors for the backward pass.
    """

    symmetric = True
    bins = False  # an angle of coordinates, which one bin for many tokens makes larger

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        self.bounded(1.0)

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        with torch.no_grad():
            p, q = normalize(teacher.exp(), dim=-1), normalize(student.exp(), dim=-1)
            values = (p - q).square().sum(-1) / 2
            slope = ((p * q).sum(-1, keepdim=True) * q - p).mul_(q)
        return _kl.attach(values, (student, slope))
