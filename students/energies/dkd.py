"""Decoupled knowledge distillation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.base import UserError
from students.batch import TokenBatch, wide

from . import _base, _kl


class Energy(_base.Energy):
    """DKD: T^2 (alpha TCKD + beta NCKD), by the label y (arXiv 2203.08679, METHOD 2.2). In nats, [0, inf).

    TCKD is the KL of the pairs (p_y, 1 - p_y), (q_y, 1 - q_y); NCKD the KL of the distributions over all tokens but y,
    renormalised. KL(p || q) = TCKD + (1 - p_y) NCKD, so beta = 1 - p_y, token by token, would give FKL. Everything is computed
    from logits without y, so that p_y -> 1 loses nothing. Where y is all that the teacher allows there are no other tokens to
    compare: NCKD is 0 (counted in ``logs["alone"]``). Where only the student bans a token, as in ``fkl``.

    Keeps three [N, V] tensors for the backward pass.

    Args:
        alpha: weight of TCKD, >= 0.
        beta: weight of NCKD, >= 0. Defaults are those of TAID's and Beta-KD's comparisons (1, .5, T = 1); the official code for
            CIFAR uses alpha = 1, beta = 8, T = 4.
        temperature: T > 0.
    """

    needs = frozenset({"labels"})
    bins = False

    def __init__(self, alpha: float = 1.0, beta: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.alpha = _base.within("alpha", alpha, 0, math.inf)
        self.beta = _base.within("beta", beta, 0, math.inf)
        if self.alpha == self.beta == 0:
            raise UserError("alpha and beta of energy 'dkd' are both 0; allowed: at least one > 0")
        self.temperature = _base.positive("temperature", temperature)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [N], unreduced, at least float32."""
        target, rest = self.parts(batch)
        return (self.alpha * target + self.beta * rest) * self.temperature**2

    def parts(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return TCKD [N] and NCKD [N], without weights and T^2."""
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            teacher = self._split(wide(batch.teacher_logits.detach()), batch.labels)
            student = self._split(wide(batch.student_logits), batch.labels)
            pair, others = _kl.kl(teacher[0], student[0]), _kl.kl(teacher[1], student[1])
            alone = teacher[2]
            self.logs = {"floored": pair.floored + others.floored, "alone": alone.sum()}
            target = _kl.attach(pair.values, (student[0], pair.b - pair.a))
            # where the teacher is alone the slope is b, which the softmax turns into a gradient of 0
            return target, _kl.attach(others.values.masked_fill(alone, 0.0), (student[1], others.b - others.a))

    def _split(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, V] logits -> log(p_y, 1 - p_y) [N, 2], log-probabilities of the others [N, V], -inf at y, and [N] no others."""
        z = z if self.temperature == 1 else z / self.temperature
        y = labels[:, None]
        others = z.scatter(-1, y, -math.inf)
        alone = others.detach().amax(-1) == -torch.inf
        inside = others.masked_fill(alone[:, None], 0.0)  # a row of -inf would give NaN, in the gradient too
        rest = inside.logsumexp(-1).masked_fill(alone, -math.inf)
        odds = z.gather(-1, y)[:, 0] - rest
        pair = torch.stack([logsigmoid(odds), logsigmoid(-odds)], -1)
        return pair, inside.log_softmax(-1).masked_fill(alone[:, None], -math.inf), alone
