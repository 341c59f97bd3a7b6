"""What an energy sees: the supervised tokens of one step, and their mean within each sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: Logits of one model that an energy takes at once on a CPU: 1 MiB in float32, so that what it makes of them stays in the
#: processor's cache, and no pass over them waits for memory (docs/performance.md has the seconds).
BLOCK = 1 << 18


def wide(values: Tensor) -> Tensor:
    """Return float32, or float64 where it came as float64: no loss is computed in half precision (METHOD 2.0, rule 1)."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass
class Tap:
    """A feature that both models were asked for, by group: an image, or a sample, of the batch.

    Attributes:
        student: [G, n, ...], with gradient.
        teacher: [G, n, ...], without; the axes after n may be of another size than the student's.
        group: [B] int64, the group that each sample reads, -1 where it has none (no image).
        mask: [G, n] bool, False where a group is shorter than n; None where all are full.
    """

    student: Tensor
    teacher: Tensor
    group: Tensor
    mask: Tensor | None = None


@dataclass
class TokenBatch:
    """Supervised tokens of one step, gathered before the head and shifted, teacher and student aligned by answer token.

    Attributes:
        student_logits: [N, V], with gradient.
        teacher_logits: [N, V], without.
        labels: [N] int64, the token each position must predict.
        sample: [N] int64 in 0..B-1, the sample each token belongs to.
        taps: features and spans by name, for energies that name them in ``needs``; None where nobody asked.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor
    sample: Tensor
    taps: Mapping[str, Tap] | None = None

    def __post_init__(self) -> None:
        n = self.labels.shape[0]
        if self.student_logits.shape != self.teacher_logits.shape:
            raise ValueError(
                f"student logits {tuple(self.student_logits.shape)}, teacher logits {tuple(self.teacher_logits.shape)}:"
                " both must be [N, V] over the same tokens"
            )
        if self.student_logits.ndim != 2 or self.student_logits.shape[0] != n or self.sample.shape != (n,):
            raise ValueError(
                f"expected [N, V] logits and [N] labels and sample, got {tuple(self.student_logits.shape)},"
                f" {tuple(self.labels.shape)}, {tuple(self.sample.shape)}"
            )

    def blocks(self) -> Iterator[TokenBatch]:
        """Yield the tokens in order, :data:`BLOCK` logits at a time, with all taps each; not on a CPU: all at once."""
        rows = max(1, BLOCK // max(1, self.student_logits.shape[1]))
        if self.student_logits.device.type != "cpu" or len(self.labels) <= rows:
            yield self
            return
        # split, and not slices: its gradients are joined once, where each slice would make one of [N, V]
        pieces = (each.split(rows) for each in (self.student_logits, self.teacher_logits, self.labels, self.sample))
        for student, teacher, labels, sample in zip(*pieces, strict=True):
            yield TokenBatch(student, teacher, labels, sample, self.taps)


def sample_mean(values: Tensor, sample: Tensor, count: int) -> Tensor:
    """Mean of the tokens of each sample.

    Args:
        values: [N], per token.
        sample: [N] int64 in 0..count-1.
        count: B, the number of samples.

    Returns:
        [B] at least float32; a sample without tokens gets a zero that is still part of the graph (METHOD 2.0, rule 6).
    """
    values = wide(values)
    zeros = values.new_zeros(count)
    tokens = zeros.index_add(0, sample, torch.ones_like(values)).clamp(min=1)  # bincount would wait for the GPU
    return zeros.index_add(0, sample, values) / tokens


def label_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per token: [N, V], [N] -> [N] at least float32, natural log."""
    return torch.nn.functional.cross_entropy(wide(logits), labels, reduction="none")
