"""Squared distance of two rows of logits, standardised or raw."""

from __future__ import annotations

import torch
from torch import Tensor

from students.batch import TokenBatch, wide

from . import _base, _kl, _logits


class Energy(_base.Energy):
    """MSE-Logits: the mean over k of (z^t_k - z^s_k)^2 of z-scores (z - mean) / (std + 1e-8), std unbiased (METHOD 2.1).

    Standardised, in [0, 4), invariant to shift and scale of either side, and exactly 2 (V - 1) / V times ``cosine_logits``.
    Raw, in [0, inf), it asks for the same logits, not just the same distribution: adding a number to one side changes it.
    A temperature would cancel out of both forms (with T^2), so there is none. A row of equal logits has z-scores of 0, and a
    student at exactly that point gets a gradient of order 1e8, which clipping has to deal with. Keeps one [N, V] tensor for the
    backward pass. Tokens that both sides ban do not count; those only one bans are floored, counted in ``logs["floored"]``.

    Args:
        standardise: compare z-scores (True, the Beta-KD code) or logits as they are.
    """

    symmetric = True
    bins = False

    def __init__(self, standardise: bool = True) -> None:
        super().__init__()
        self.standardise = _base.flag("standardise", standardise)
        if self.standardise:
            self.bounds = (0.0, 4.0)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [N], unreduced, at least float32."""
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            z = wide(batch.student_logits)
            with torch.no_grad():
                found = _logits.finite(wide(batch.teacher_logits.detach()), z)
                self.logs = {"floored": found.floored}
                values, slope = self._scores(found) if self.standardise else self._raw(found)
            return _kl.attach(values, (z, slope.masked_fill_(found.fixed, 0.0)))

    @staticmethod
    def _raw(found: _logits.Logits) -> tuple[Tensor, Tensor]:
        gap = found.student - found.teacher
        return (gap.square() / found.count).sum(-1), gap.mul(2).div_(found.count)

    @staticmethod
    def _scores(found: _logits.Logits) -> tuple[Tensor, Tensor]:
        """Values [N] and their slope by the student's logits [N, V]."""
        free = (found.count - 1).clamp(min=1)
        scaled = []
        for side in _logits.centred(found):
            std = (side.square().sum(-1, keepdim=True) / free).sqrt()
            scaled.append((side / (std + 1e-8), std))
        (teacher, _), (student, std) = scaled
        gap = student - teacher
        outer = (2 * gap).div_(found.count)
        # the std depends on the student too: take out the part along the student's own z-scores
        inner = (outer * student).sum(-1, keepdim=True) / free * ((std + 1e-8) / std.clamp(min=torch.finfo(std.dtype).tiny))
        return gap.square().sum(-1) / found.count[:, 0], (outer - inner * student).div_(std + 1e-8)
