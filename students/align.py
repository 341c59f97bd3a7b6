"""Teacher and student aligned by (sample, n-th supervised token): each reads the same reply through its own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import UserError

if TYPE_CHECKING:
    from students.data.pack import Batch

Ids = NDArray[np.int64]
#: Tokens shown of each side of a disagreement.
SHOWN = 6


def aligned(student: Batch, teacher: Batch, ids: Sequence[str], cut: Sequence[bool], names: Sequence[str]) -> Tensor | None:
    """Find the student's supervised tokens among the teacher's; both batches are on the host.

    Args:
        student, teacher: the same B samples.
        ids: their ids.
        cut: for each, whether the student's row was cut off, so that the teacher may go on where it ends.
        names: the vocabulary that both share, in id order.

    Returns:
        [N] int64, the teacher's supervised token of each of the student's; None where both have the same.

    Raises:
        UserError: naming the first sample whose tokens differ, and them.
    """
    if np.array_equal(student.labels.numpy(), teacher.labels.numpy()) and torch.equal(student.sample, teacher.sample):
        return None
    mine, theirs = by_sample(student), by_sample(teacher)
    kept, start = [], 0
    for own, other in zip(leading(mine, theirs, ids, cut, names), theirs, strict=True):
        kept.append(start + np.arange(own))
        start += len(other)
    return torch.from_numpy(np.concatenate(kept))


def leading(
    mine: Sequence[Ids], theirs: Sequence[Ids], ids: Sequence[str], cut: Sequence[bool], names: Sequence[str]
) -> list[int]:
    """Return how many of each sample's supervised tokens the student has, which are the teacher's first ones.

    Args:
        mine, theirs: int64, the supervised tokens of each sample.
        ids, cut, names: as in :func:`aligned`.

    Raises:
        UserError: naming the first sample whose tokens differ, and them.
    """
    for name, was_cut, own, other in zip(ids, cut, mine, theirs, strict=True):
        if not (np.array_equal(own, other[: len(own)]) and (was_cut or len(own) == len(other))):
            raise differ(name, own, other, names)
    return [len(own) for own in mine]


def by_sample(batch: Batch) -> list[Ids]:
    """Return each sample's supervised tokens, from a batch on the host."""
    counts = np.bincount(batch.sample.numpy(), minlength=len(batch.indices))
    return np.split(batch.labels.numpy(), np.cumsum(counts)[:-1])


def differ(name: str, own: np.ndarray, other: np.ndarray, names: Sequence[str]) -> UserError:
    """Build the error for a sample of which the models learn different tokens."""
    least = min(len(own), len(other))
    first = int(np.argmax(own[:least] != other[:least])) if (own[:least] != other[:least]).any() else least

    def said(ids: np.ndarray) -> str:
        words = [repr(names[k]) if k < len(names) else f"id {k}" for k in ids[first : first + SHOWN].tolist()]
        return " ".join(words) or "nothing more"

    return UserError(
        f"sample {name!r}: student and teacher learn different tokens from supervised token {first + 1} on: the student"
        f" {said(own)} ({len(own)} in all), the teacher {said(other)} ({len(other)}). Give both the same tokenizer and a"
        " template that ends replies with the same token"
    )
