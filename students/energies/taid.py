"""Temporally adaptive interpolated distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.base import UserError
from students.batch import TokenBatch, wide

from . import _base, _kl


class Energy(_base.Energy):
    """TAID: KL(p_t || q) in nats, p_t = softmax((1 - t) sg(z^s) + t z^t), t rising from ``t0`` to ``t_end`` (METHOD 2.2).

    After every optimiser step, with l the mean loss of its tokens: r = (l_before - l) / (l_before + 1e-15), m <- b m +
    (1 - b) r, t <- min(t_end, max(t_lin, t + alpha sigmoid(m) (1 - t))), t_lin = t0 + (t_end - t0) step / total. The first loss
    has nothing to be compared with, so that step moves t by the linear floor alone. t never falls. No gradient passes through
    p_t: d/dz^s = q - p_t. t = 1 is ``fkl``; at t = 0 value and gradient are 0. Tokens that only the student bans enter p_t, and
    the floor of ``fkl``, only at t = 1.

    The proper KL: the official code's soft cross-entropy adds the entropy of p_t to l, which biases r. t, m, l_before and the
    loss of the running step (sum and count of tokens, in training mode only) are buffers: saved with the run, unmoved by
    evaluation, and the same however a step is cut into micro-batches. Keeps two [N, V] tensors for the backward pass.

    Args:
        t0: t at the start, in [0, 1].
        t_end: t at the end of the run, in [t0, 1].
        alpha: largest adaptive move of t per step, in [0, 1].
        b: memory of the momentum m, in [0, 1].
        disable_adaptive: follow t_lin alone.
    """

    stateful = True
    sums = ("loss_sum", "loss_count")
    bins = False
    t: Tensor
    momentum: Tensor
    before: Tensor
    loss_sum: Tensor
    loss_count: Tensor

    def __init__(
        self, t0: float = 0.4, t_end: float = 1.0, alpha: float = 5e-4, b: float = 0.99, disable_adaptive: bool = False
    ) -> None:
        super().__init__()
        self.t0 = _base.within("t0", t0, 0, 1)
        self.t_end = _base.within("t_end", t_end, 0, 1)
        if self.t_end < self.t0:
            raise UserError(f"t_end is {t_end!r}, below t0 = {t0!r}; allowed: t0 <= t_end <= 1")
        self.alpha = _base.within("alpha", alpha, 0, 1)
        self.b = _base.within("b", b, 0, 1)
        self.disable_adaptive = _base.flag("disable_adaptive", disable_adaptive)
        self.register_buffer("t", torch.tensor(self.t0))
        self.register_buffer("momentum", torch.tensor(0.0))
        self.register_buffer("before", torch.tensor(torch.inf))  # no loss yet
        self.register_buffer("loss_sum", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("loss_count", torch.tensor(0.0, dtype=torch.float64))

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [N], unreduced, at least float32; in training mode, remember the sum for :meth:`on_optimiser_step`."""
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            z = wide(batch.student_logits)
            student = z.log_softmax(-1)
            with torch.no_grad():
                teacher = wide(batch.teacher_logits)
                found = _kl.kl(self.target(teacher, z), student)
                self.logs = {"floored": found.floored}
                # a teacher that bans every token is broken, and must not be hidden by the student's part of p_t
                values = found.values.masked_fill(teacher.amax(-1) == -torch.inf, torch.nan)
                if self.training:
                    self.loss_sum += values.sum(dtype=torch.float64)
                    self.loss_count += len(values)
            return _kl.attach(values, (student, found.b - found.a))

    @torch.no_grad()
    def target(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return log p_t [N, V] from logits of teacher and student."""
        # lerp is exact at both ends, and where both sides are equal
        student, teacher = student.clamp(min=_kl.BANNED), teacher.clamp(min=_kl.BANNED)
        return torch.lerp(student, teacher, self.t.to(student.dtype)).log_softmax(-1)

    @torch.no_grad()
    def on_optimiser_step(self, step: int, total: int) -> None:
        """Advance t by the mean loss since the last call, and to the linear floor of ``step`` of ``total``."""
        floor = self.t0 + (self.t_end - self.t0) * min(1.0, step / total)
        loss = (self.loss_sum / self.loss_count).float()
        change = (self.before - loss) / (self.before + 1e-15)
        follows = (self.before != torch.inf) & (self.loss_count > 0)  # a step without tokens says nothing
        self.momentum.copy_(torch.where(follows, self.b * self.momentum + (1 - self.b) * change, self.momentum))
        move = torch.where(follows, self.alpha * self.momentum.sigmoid() * (1 - self.t), 0.0)
        if self.disable_adaptive:
            self.t.fill_(floor)
        else:
            self.t.copy_((self.t + move).clamp(min=floor).clamp(max=self.t_end))
        self.before.copy_(torch.where(self.loss_count > 0, loss, self.before))
        self.loss_sum.zero_()
        self.loss_count.zero_()
