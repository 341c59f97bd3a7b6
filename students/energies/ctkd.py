"""Curriculum temperature distillation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from students.batch import TokenBatch, wide

from . import _base, _kl


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by minus ``strength``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, strength: Tensor) -> Tensor:
        ctx.save_for_backward(strength)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (strength,) = ctx.saved_tensors
        return -strength * grad, None


class Energy(_base.Energy):
    """CTKD: T^2 KL(p || q) at a learned T = t0 + t1 sigmoid(theta) (arXiv 2211.16231, METHOD 2.2). In nats, [0, inf).

    One temperature for all tokens, in (t0, t0 + t1), learned adversarially: the gradient of theta is multiplied by -lambda, so
    that theta climbs where the student descends. lambda rises from 0 to 1 by half a cosine over the first ``share`` of the run
    (real optimiser steps) and stays. The student's own gradient is the plain one. The releases of Beta-KD and TAID keep lambda
    positive, so that nothing is reversed there. Banned tokens as in ``fkl``. Keeps one [N, V] tensor for the backward pass,
    makes eight on the way.

    Args:
        t0: lower end of T, > 0.
        t1: width of T's range, > 0. 20 is the official code's, for classifiers of 100 classes: with theta = 1 a run starts at
            T = 15.6, where the KL compares centred logits rather than probabilities (METHOD 2.0, the limit row). The defaults
            here stay the published ones, so that ``ctkd`` means CTKD; t1 = 4, theta = -2 start at T = 1.48 as Beta-KD does.
        theta: start of the learned number.
        share: part of the run over which lambda rises, in (0, 1]; the official one is 10 of 240 epochs.
    """

    stateful = True
    bins = False
    strength: Tensor

    def __init__(self, t0: float = 1.0, t1: float = 20.0, theta: float = 1.0, share: float = 10 / 240) -> None:
        super().__init__()
        self.t0, self.t1 = _base.positive("t0", t0), _base.positive("t1", t1)
        self.share = _base.within("share", share, 0, 1, "(]")
        self.theta = nn.Parameter(torch.tensor(_base.within("theta", theta, -math.inf, math.inf)))
        self.register_buffer("strength", torch.tensor(0.0))

    @property
    def temperature(self) -> Tensor:
        """T now, 0-d, with theta's plain gradient."""
        return self.t0 + self.t1 * wide(self.theta).sigmoid()

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [N], unreduced, at least float32."""
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            theta: Tensor = _Reverse.apply(wide(self.theta), self.strength)  # type: ignore[no-untyped-call]
            temperature, student = self.t0 + self.t1 * theta.sigmoid(), wide(batch.student_logits)
            values, by_student, by_temperature = self._compare(wide(batch.teacher_logits), student, temperature)
            each = temperature.to(student.dtype).expand(len(values), 1)
            return _kl.attach(values, (student, by_student), (each, by_temperature)) * each[:, 0] ** 2

    @torch.no_grad()
    def _compare(self, teacher: Tensor, student: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """KL at T [N], its slopes by the student's logits [N, V] and by T [N, 1]."""
        log_q = (student / temperature).log_softmax(-1)
        found = _kl.kl((teacher / temperature).log_softmax(-1), log_q)
        self.logs = {"floored": found.floored}
        teacher, student = teacher.clamp(min=_kl.BANNED), student.clamp(min=_kl.BANNED)
        slope = found.b - found.a
        # d log p_k / d(1 / T) = z_k - <p, z>, and so for q; where q is floored it is a constant
        by_q = slope.masked_fill(log_q < _kl.LOG_FLOOR, 0.0) * (student - (found.b * student).sum(-1, keepdim=True))
        by_p = (found.a * found.gap).mul_(teacher - (found.a * teacher).sum(-1, keepdim=True))
        return found.values, slope.div_(temperature), -(by_q + by_p).sum(-1, keepdim=True) / temperature**2

    def on_optimiser_step(self, step: int, total: int) -> None:
        """Set lambda for the next step: ``step`` of ``total`` are done."""
        self.strength.fill_((1 - math.cos(math.pi * min(1.0, step / (self.share * total)))) / 2)
