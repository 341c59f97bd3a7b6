"""What every energy declares, and the base of energies over two probability vectors (METHOD.md 2.0)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from harness.base import UserError
from students.batch import TokenBatch, wide


def within(name: str, value: float, low: float, high: float, ends: str = "[]") -> float:
    """Return an option that must be a finite number between ``low`` and ``high``; ``ends`` says which of them are allowed.

    Raises:
        UserError: naming the option, its value and what is allowed otherwise.
    """
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    if not fits or (value == low and ends[0] == "(") or (value == high and ends[1] == ")"):
        span = f"in {ends[0]}{low:g}, {high:g}{ends[1]}" if high < math.inf else f"{'>=' if ends[0] == '[' else '>'} {low:g}"
        raise UserError(f"{name} is {value!r}; allowed: a finite number" + (f" {span}" if low > -math.inf else ""))
    return float(value)


def positive(name: str, value: float) -> float:
    """Return an option that must be a finite number above 0.

    Raises:
        UserError: naming the option and its value otherwise.
    """
    return within(name, value, 0, math.inf, "()")


def flag(name: str, value: bool) -> bool:
    """Return an option that must be true or false.

    Raises:
        UserError: naming the option and its value otherwise.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}; allowed: true, false")
    return value


class Energy(nn.Module):
    """Base of every teacher-student divergence.

    Its parameters (a projection from teacher to student width, say) learn with the student, its buffers (the progress of
    TAID) are saved with them, beside the student's checkpoint and never inside it.

    Attributes:
        level: "token" for values [N], each of its own token alone; "sample" for values [B].
        reads_logits: whether the logits are looked at; False for an energy of taps alone.
        bins: whether it may compare a teacher's k likeliest tokens and one bin for all others (:mod:`students.bins`) in place
            of distributions; False where it reads raw logits, labels as tokens of the vocabulary, or single probabilities.
        zero_at_match: whether equal outputs give exactly 0 (the weightings that take logs rely on it).
        symmetric: whether swapping teacher and student gives the same value.
        bounds: smallest and largest value with the options this was built with, over all vocabularies.
        stateful: whether :meth:`on_optimiser_step` changes what later calls return.
        needs: what it reads beside logits and sample numbers: "labels", or names of TokenBatch's taps.
        rate: factor on the student's learning rate for the energy's own parameters.
        sums: names of buffers that add up over the tokens of a step; over several processes, :meth:`on_optimiser_step` sees
            their sums over all of them. No other buffer may change in a call.
        logs: counts (0-d tensors) of the latest call, such as values that had to be floored; the distiller sums them.
    """

    level: Literal["token", "sample"] = "token"
    reads_logits: bool = True
    bins: bool = True
    zero_at_match: bool = True
    symmetric: bool = False
    bounds: tuple[float, float] = (0.0, math.inf)
    stateful: bool = False
    needs: frozenset[str] = frozenset()
    rate: float = 1.0
    sums: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, Tensor] = {}

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return one value per token [N] (or per sample [B]), unreduced, at least float32, with the student's gradient."""
        raise NotImplementedError

    def present(self, batch: TokenBatch) -> Tensor | None:  # noqa: ARG002 - subclasses read it
        """Return [B] bool, False for samples that this energy says nothing about (no image), or None for all of them."""
        return None

    def on_optimiser_step(self, step: int, total: int) -> None:
        """Advance the state; called once after every optimiser step, ``step`` of ``total`` being done."""


class LogitsEnergy(Energy):
    """Base of energies over two probability vectors at temperature T.

    A subclass says how to compare log-probabilities, with autograd or with the helpers of ``_kl``; this class does precision,
    temperature and the factor T^2, which keeps the scale of a KL's gradient (METHOD 2.0, rules 1 and 5).
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.bins = self.bins and self.temperature == 1  # a bin of many tokens has no temperature

    def bounded(self, most: float) -> None:
        """Declare the largest value at T^2 = 1; the smallest is 0."""
        self.bounds = (0.0, most * self.temperature**2)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [N], unreduced; autocast never reaches the softmax (METHOD 2.0, rule 1)."""
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            teacher, student = wide(batch.teacher_logits.detach()), wide(batch.student_logits)
            if self.temperature == 1:  # no needless copies of [N, V]
                return self.compare(teacher.log_softmax(-1), student.log_softmax(-1))
            values = self.compare((teacher / self.temperature).log_softmax(-1), (student / self.temperature).log_softmax(-1))
            return values * self.temperature**2

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Compare log-probabilities [N, V] (-inf for banned tokens) and return [N]; T^2 is applied by the caller."""
        raise NotImplementedError
