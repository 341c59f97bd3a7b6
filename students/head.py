"""From states to losses: the head, and everything that reads a whole row of logits, in chunks where all at once are too many.

A row of logits is as wide as the vocabulary, and a loss makes several more of that size on the way. Tokens are independent of
each other there, so with more than ``stored.LIMIT`` logits they are taken a chunk at a time: the forward pass keeps a token's
values and nothing else, and the backward pass makes each chunk's logits once more (torch's checkpointing). What a step holds at
once then depends neither on the number of tokens nor, but for the head itself, on the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from students import stored
from students.bins import Bins
from students.features import sample_scalars, token_scalars
from students.losses import ChannelLosses, Losses

if TYPE_CHECKING:
    from students.data.pack import Batch
    from students.models._base import Adapter
    from students.training import Passed
    from students.voice import Said

#: Logits of one model and micro-batch that histograms are made of, where not all of them exist at once.
SHOWN = 1_000_000


@dataclass(frozen=True)
class Read:
    """What was made of a micro-batch's N states.

    Attributes:
        losses: per sample.
        logits: the student's [N, V], with gradient; [0, V] where they were made in chunks.
        scalars: {"student" or "teacher": [B, 2]} as :func:`students.features.scalars`, where chunks were taken and they were
            asked for.
        shown: {"student" or "teacher": [n]}: some logits at a regular distance, likewise.
    """

    losses: ChannelLosses
    logits: Tensor
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    shown: Mapping[str, Tensor] = field(default_factory=dict)


class Head:
    """The student's head and the losses behind it.

    Args:
        adapter: the student.
        losses: of its recipe.
        autocast: returns the context in which the head runs.
        features: names of the features that the weighting reads.
        limit: most logits at once; None for ``stored.LIMIT``.
    """

    def __init__(
        self,
        adapter: Adapter,
        losses: Losses,
        autocast: Callable[[], AbstractContextManager[None]],
        features: tuple[str, ...] = (),
        limit: int | None = None,
    ) -> None:
        self.adapter, self.losses, self.autocast = adapter, losses, autocast
        self.limit = stored.LIMIT if limit is None else limit
        owners = {"student": {"student_scalars", "scalars"}, "teacher": {"teacher_scalars", "scalars"}}
        self.scalars = tuple(owner for owner, names in owners.items() if names & set(features))

    def __call__(self, states: Tensor, batch: Batch, said: Said | None, show: bool) -> Read:
        """Compare the student with labels and teacher.

        Args:
            states: [N, H] that predict the supervised tokens, with gradient.
            batch: the micro-batch, on the device.
            said: what the teacher says about it, if it was asked.
            show: whether logits for a histogram are wanted.
        """
        taps = said.taps if said is not None else None
        width, count = self.adapter.vocabulary_size, len(batch.indices)
        most = max(1, self.limit // width)
        if len(states) <= most or not self.losses.by_tokens:
            return self.of_logits(self._project(states), batch, said)
        size = -(-len(states) // -(-len(states) // most))
        aside = _Aside(self.scalars, -(-len(states) * width // SHOWN) if show else 0)
        found = []
        # split, and not slices: its gradients are joined once, where each slice would make one of [N, H]
        for number, part in enumerate(states.split(size)):
            chunk = self._chunk(batch, said, slice(number * size, number * size + len(part)), aside)
            found.append(checkpoint(chunk, part, use_reentrant=False))
        tokens = {channel: torch.cat([values[channel] for values in found]) for channel in found[0]}
        losses = self.losses.of_samples(tokens, batch.labels, batch.sample, count, taps)
        facts = {owner: sample_scalars(torch.cat(v), batch.sample, count) for owner, v in aside.scalars.items() if v}
        return Read(losses, states.new_empty(0, width), facts, {owner: torch.cat(v) for owner, v in aside.shown.items() if v})

    def of_logits(self, logits: Tensor, batch: Batch, said: Said | None) -> Read:
        """Compare all of a micro-batch's logits [N, V], with gradient, at once."""
        teacher, taps = (said.logits[:], said.taps) if said is not None else (None, None)
        return Read(self.losses(logits, batch.labels, batch.sample, len(batch.indices), teacher, taps), logits)

    def _project(self, states: Tensor) -> Tensor:
        with self.autocast():
            return self.adapter.head(states)

    def _chunk(self, batch: Batch, said: Said | None, where: slice, aside: _Aside) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return what makes the values {channel: [n]} of some tokens from their states [n, H]."""
        labels, sample = batch.labels[where], batch.sample[where]
        taps = said.taps if said is not None else None
        fresh = True

        def values(states: Tensor) -> dict[str, Tensor]:
            nonlocal fresh
            first, fresh = fresh, False
            logits = self._project(states)
            teacher = said.logits[where] if said is not None else None
            if first:
                aside.take(where.start, student=logits, teacher=teacher)
                return self.losses.of_tokens(logits, labels, sample, teacher, taps)
            with self._uncounted():  # the backward pass asks once more
                return self.losses.of_tokens(logits, labels, sample, teacher, taps)

        return values

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Leave the states and the logs of the energies alone."""
        training = self.losses.training
        self.losses.eval()
        try:
            yield
        finally:
            self.losses.train(training)


class _Aside:
    """What is kept of chunks' logits beside the losses: two numbers a token, and some for a histogram."""

    def __init__(self, owners: tuple[str, ...], stride: int) -> None:
        self.scalars: dict[str, list[Tensor]] = {owner: [] for owner in owners}
        self.shown: dict[str, list[Tensor]] = {"student": [], "teacher": []}
        self.stride = stride

    @torch.no_grad()
    def take(self, start: int, **said: Tensor | Bins | None) -> None:
        """Keep what is needed of tokens from ``start`` on, logits [n, V] by owner."""
        for owner, logits in said.items():
            if owner in self.scalars and isinstance(logits, Tensor):  # of bins, the features know themselves
                self.scalars[owner].append(token_scalars(logits))
            if self.stride and isinstance(logits, Tensor):
                skipped = -start * logits.shape[1] % self.stride  # every stride-th of all tokens' logits
                self.shown[owner].append(logits.detach().reshape(-1)[skipped :: self.stride].clone())


def spoken(parts: Sequence[Passed]) -> dict[str, Tensor]:
    """Return the logits [N, V] of a step's micro-batches by owner, as far as they are kept; a teacher of bins has none."""
    teacher = [p.said.logits for p in parts if p.said is not None and isinstance(p.said.logits, Tensor)]
    return {"student": torch.cat([p.logits for p in parts])} | ({"teacher": torch.cat(teacher)} if teacher else {})


def shown(parts: Sequence[Passed], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return logits for a step's histograms by owner: those that :func:`spoken` kept, and those that chunks left."""
    found = {}
    for owner, logits in kept.items():
        left = [p.shown[owner] for p in parts if owner in p.shown]
        if left:  # thinned out like them
            logits = logits.reshape(-1)[:: -(-logits.numel() // SHOWN) or 1].to(left[0].dtype)
        found[owner] = torch.cat([logits, *left]) if left else logits
    return found
