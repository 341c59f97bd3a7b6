"""One minus the cosine of two standardised rows of logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from students.batch import TokenBatch, wide

from . import _base, _kl, _logits


class Energy(_base.Energy):
    """Cosine-Logits: 1 - cos(z^t, z^s), both centred over the vocabulary (METHOD 2.1). In [0, 2].

    Standardising divides by a norm that the cosine takes out again, so only centring matters, and a temperature would change
    nothing. Invariant to shift and scale of either side. ``mse_logits`` is exactly 2 (V - 1) / V times this: the two rows of
    the paper's Table 1 are one loss at two weights. A row of equal logits has no direction; its unit vector counts as zero.
    Computed as half the squared distance of unit vectors: never below 0, exactly 0 at equal logits. Keeps one [N, V] tensor for
    the backward pass. Tokens that both sides ban do not count; those only one bans are floored, counted in ``logs["floored"]``.
    """

    symmetric = True
    bins = False
    bounds = (0.0, 2.0)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [N], unreduced, at least float32."""
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            z = wide(batch.student_logits)
            with torch.no_grad():
                found = _logits.finite(wide(batch.teacher_logits.detach()), z)
                self.logs = {"floored": found.floored}
                teacher, student = _logits.centred(found)
                size = student.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                target, unit = normalize(teacher, dim=-1), student / size
                # a row that bans everything is 0 / 0, as it is for the energies over probabilities, and not a match
                values = (target - unit).square().sum(-1) / 2 * (found.count / found.count)[:, 0]
                slope = ((target * unit).sum(-1, keepdim=True) * unit - target).div_(size).masked_fill_(found.fixed, 0.0)
            return _kl.attach(values, (z, slope))
