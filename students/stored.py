"""A teacher's logits where all of a micro-batch's at once are too many: read from disk, or made, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from students.bins import Bins

#: Logits of one model that are held at once: 2^24 in float32 are 64 MiB, and head, labels and an energy hold about five such.
LIMIT = 1 << 24


@dataclass(frozen=True)
class Stored:
    """Logits [N, V] of N tokens that exist only while they are looked at.

    Attributes:
        count: N.
        width: V.
        read: returns those of some of the tokens, [n, V] without gradient; the same whenever it is asked.
        device: where they go.
    """

    count: int
    width: int
    read: Callable[[slice], Tensor]
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, tokens: slice) -> Tensor:
        """Return the logits of some of the tokens."""
        return self.read(tokens).to(self.device, non_blocking=True)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Stored:  # noqa: ARG002 - as a tensor's
        """Return the same, whose parts go to a device."""
        return Stored(self.count, self.width, self.read, device)


def held(count: int, width: int, read: Callable[[slice], Tensor]) -> Tensor | Stored:
    """Return logits [N, V] at once where they are no more than :data:`LIMIT`, else in parts.

    Args:
        count: N.
        width: V.
        read: see :class:`Stored`.
    """
    return read(slice(0, count)) if count * width <= LIMIT else Stored(count, width, read)


def parts(logits: Tensor | Stored) -> Iterator[Tensor]:
    """Yield logits [N, V] in order, [n, V] at a time; a tensor comes whole."""
    if isinstance(logits, Tensor):
        yield logits
        return
    size = max(1, LIMIT // logits.width)
    for start in range(0, len(logits), size):
        yield logits[start : start + size]


#: What a teacher says about tokens.
Spoken = Tensor | Bins | Stored
