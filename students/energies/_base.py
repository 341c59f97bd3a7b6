"""What every energy declares, and the numerics that energies over logits share (METHOD.md 2.0)."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from harness.base import UserError
from students.batch import TokenBatch

#: Smallest log-probability an energy works with, so that a token the student bans costs much but not infinitely much.
LOG_FLOOR = -1e4


class Energy(Protocol):
    """A teacher-student divergence.

    Attributes:
        level: "token" for values [N], "sample" for values [B].
        zero_at_match: whether equal logits give exactly 0 (the weightings that take logs rely on it).
        needs: names of TokenBatch's optional fields that it reads.
        logs: counts (0-d tensors) of the latest call, such as values that had to be floored; the distiller sums them.
    """

    level: Literal["token", "sample"]
    zero_at_match: bool
    needs: frozenset[str]
    logs: dict[str, Tensor]

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return one float32 value per token [N] (or per sample [B]), unreduced, with the student's gradient."""
        ...


class LogitsEnergy:
    """Base of energies over two probability vectors at temperature T."""

    level: Literal["token", "sample"] = "token"
    zero_at_match: bool = True
    needs: frozenset[str] = frozenset()

    def __init__(self, temperature: float = 1.0) -> None:
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
            raise UserError(f"temperature is {temperature!r}; allowed: a finite number > 0")
        self.temperature = float(temperature)
        self.logs: dict[str, Tensor] = {}

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return [N] float32, unreduced; autocast never reaches the softmax (METHOD 2.0, rule 1)."""
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            teacher = (batch.teacher_logits.detach().float() / self.temperature).log_softmax(-1)
            student = (batch.student_logits.float() / self.temperature).log_softmax(-1)
            return self.compare(teacher, student) * self.temperature**2

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Compare log-probabilities [N, V] (float32, -inf for banned tokens) and return [N]; T^2 is applied by the caller."""
        raise NotImplementedError
