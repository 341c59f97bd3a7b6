"""Feature distillation: the student's projected vision tokens against the teacher's, through a learned map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from students.batch import TokenBatch

from . import _base, _taps


class Energy(_base.Energy):
    """FD: mean over vision tokens and channels of (W f^t - f^s)^2, per sample; [0, inf) (METHOD 2.3, as in Beta-KD).

    f is the projector's output, W a learned linear map from the teacher's width to the student's. Zero exactly where
    f^s = W f^t; W starts as the identity where widths are equal. Samples without an image are absent: the released code
    matches the features of a black image there.

    Args:
        widths: (student, teacher) width of the tap "vision".
    """

    level = "sample"
    reads_logits = False
    needs = frozenset({"vision"})

    def __init__(self, widths: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.project = _taps.projection("fd", widths, "vision")

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [B], 0 for samples without an image (see :meth:`present`)."""
        vision = _taps.tap("fd", batch, "vision")
        with torch.autocast(vision.student.device.type, enabled=False):
            gaps = _taps.squared_gap(self.project, vision)
            means = gaps.mean((1, 2)) if vision.mask is None else _taps.token_mean(gaps.mean(2), vision.mask)
            return _taps.of_samples(means, vision.group)

    def present(self, batch: TokenBatch) -> Tensor:
        """[B] bool: the samples that show an image."""
        return _taps.tap("fd", batch, "vision").group >= 0
