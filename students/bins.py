"""Distributions over the k tokens that a teacher finds most likely and one bin for all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from students.batch import wide


@dataclass(frozen=True)
class Bins:
    """What a teacher says about N tokens, in k + 1 bins.

    Attributes:
        ids: [N, k] int64, the tokens of the first k bins.
        logits: [N, k + 1] log-probabilities, the last of all tokens that ``ids`` leaves out.
    """

    ids: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, tokens: slice | Tensor) -> Bins:
        """Return the bins of some of the tokens."""
        return Bins(self.ids[tokens], self.logits[tokens])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Bins:
        """Return the bins on a device."""
        return Bins(self.ids.to(device, non_blocking=non_blocking), self.logits.to(device, non_blocking=non_blocking))

    def detach(self) -> Bins:
        """Return the bins without a graph; they never have one."""
        return self

    def numel(self) -> int:
        """How many numbers the distributions are made of."""
        return self.logits.numel()


def binned(logits: Tensor, ids: Tensor) -> Tensor:
    """Sum a model's distribution into a teacher's bins.

    Args:
        logits: [N, V], with or without gradient, over the vocabulary that both models share.
        ids: [N, k] int64, k < V.

    Returns:
        Log-probabilities [N, k + 1], at least float32. They are normalised, so a softmax leaves them as they are.
    """
    log_p = wide(logits).log_softmax(-1)
    others = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p.gather(-1, ids), others], -1)
