"""What a training reads: which rows each step takes, how the student (and a live teacher) read them, and facts about them."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.base import UserError
from students.data.pack import Batch, Encoded, collate, groups, schedule
from students.data.samples import TrainingSet
from students.data.truncation import counts as counted
from students.data.truncation import line
from students.teacher_signal.keys import data_digest
from students.vision import pictures
from students.vocabulary import refuse_beyond

if TYPE_CHECKING:
    from students.models._base import Adapter
    from students.options import DistilOptions

#: What training.json says of the rows that were taken; see :func:`students.data.truncation.counts`.
COUNTED = tuple(counted(()))

#: Rows of sample numbers, as many as a step or a micro-batch takes; a row of a stream is one sample.
Members = list[list[int]]


@dataclass(frozen=True)
class Hearing:
    """What a live teacher reads of a micro-batch of a stream.

    Attributes:
        batch: the same conversations through its own template and image tokens; on the CPU.
        tokens: which of its supervised tokens [N] int64 are the student's, in order; None where all are.
    """

    batch: Batch
    tokens: Any = None


@dataclass(frozen=True)
class Part:
    """One micro-batch, on the host.

    Attributes:
        members: its rows.
        batch: as the student reads them.
        ids: the B samples' ids.
        noisy: for each, whether its label was replaced.
        hearing: as a live teacher reads them, in streams.
        counts: what training.json sums (:data:`COUNTED`).
        replaced: ids of rows that had nothing left to learn, and in whose place others stand.
        cut: for each sample, whether the student's row was cut off before the conversation's end; empty where none can be.
    """

    members: Members
    batch: Batch
    ids: tuple[str, ...]
    noisy: tuple[bool, ...]
    hearing: Hearing | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    cut: tuple[bool, ...] = ()
    replaced: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.batch.input_ids.shape[1])


class Feed(abc.ABC):
    """The rows of a training, step by step; the same for every student of a seed.

    Attributes:
        steps: how many optimiser steps there are.
        size: S, how many samples there are.
        planted: whether some samples are known to be blind.
        shared: V and the student's tokens, where there is a teacher: labels are of the V tokens that both know.
        vision: where features of images were stored: by model ("student", "teacher"), whether it read them, or why not.
        tokens: where a corpus's tokens were stored: the same.
        pictures: where a corpus's decoded pictures were stored ("images"): how many, or why not.
    """

    steps: int
    size: int
    planted: bool = False
    shared: tuple[int, Sequence[str]] | None = None
    vision: Mapping[str, str] = MappingProxyType({})
    tokens: Mapping[str, str] = MappingProxyType({})
    pictures: Mapping[str, str] = MappingProxyType({})

    def known(self, batch: Batch) -> Batch:
        """Return the batch, on the host, if both models know its labels; see :func:`students.vocabulary.refuse_beyond`."""
        if self.shared is not None:
            refuse_beyond(batch.labels.numpy(), *self.shared)
        return batch

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) of the samples, in order, by which a resume point knows its data."""

    @abc.abstractmethod
    def members(self, step: int) -> Members:
        """Return the rows of step 1 .. steps."""

    @abc.abstractmethod
    def part(self, members: Members) -> Part:
        """Make a micro-batch of rows."""

    @abc.abstractmethod
    def describe(self, index: int) -> dict[str, Any]:
        """What a person needs to find a sample again: its id, images and text."""

    def totals(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """What training.json says of the rows that were taken, repeats counted."""
        facts = {"samples": self.size, **{name: counts[name] for name in COUNTED}, "note": line(counts)}
        said = {name: dict(why) for name in ("vision", "tokens", "pictures") if (why := getattr(self, name))}
        return {**facts, **said}

    def blind(self, index: int) -> bool:  # noqa: ARG002 - packed data knows
        """Whether the teacher is known not to see the sample's image."""
        return False

    def ahead(self, parts: Sequence[Members]) -> None:  # noqa: B027 - packed rows are ready
        """Prepare micro-batches that are needed soon, where that takes time."""

    def close(self) -> None:  # noqa: B027
        """Let go of what :meth:`ahead` started."""


class PackedFeed(Feed):
    """Samples in memory, questions about one image in one row.

    Args:
        data, encoded: the samples and their tokens.
        options, seed: of the training.
        adapter: the student, as it will learn.
        vision: folder of stored features of the images; None where nothing is stored.

    Raises:
        UserError: when tokens and samples do not fit, or an option is for streams alone.
    """

    def __init__(
        self,
        data: TrainingSet,
        encoded: Encoded,
        options: DistilOptions,
        seed: int,
        adapter: Adapter,
        vision: Path | None = None,
    ) -> None:
        if len(encoded) != len(data):
            raise UserError(f"{len(encoded)} encoded samples do not fit {len(data)} samples")
        for name in ("max_length", "template"):
            if getattr(options, name) is not None:
                raise UserError(f"{name} is {getattr(options, name)!r}, and packed rows are made without; it is for corpora")
        if options.grouping != "none":
            raise UserError(f"grouping is {options.grouping!r}, and packed rows share an image each; it is for corpora")
        self.data, self.encoded, self.per_step, self.seed = data, encoded, options.rows, seed
        self.rows = groups(encoded, options.turns, seed)
        self.steps = options.steps or max(1, math.floor((options.epochs or 0) * len(self.rows) / options.rows))
        self.size, self.planted = len(data), any(s.blind for s in data)
        self.pixels, why = pictures.table(adapter, data, vision, options.precision == "bf16")
        if vision is not None:
            self.vision = {"student": why}
        self._next = 0
        self._rows: Iterator[Members] = iter(())

    def digest(self) -> str:
        """SHA-256 (hex) of the samples and their images."""
        return data_digest(self.data)

    def members(self, step: int) -> Members:
        """Return the rows of step 1 .. steps."""
        if step != self._next:
            self._rows = itertools.islice(schedule(self.rows, self.steps, self.per_step, self.seed), step - 1, None)
        self._next = step + 1
        return next(self._rows)

    def part(self, members: Members) -> Part:
        """Pack rows into one batch."""
        batch = self.known(collate(self.encoded, members, self.pixels))
        samples = [self.data.samples[k] for k in batch.indices]
        images = 0 if batch.pixel_values is None else len(batch.pixel_values)
        return Part(
            members,
            batch,
            tuple(s.id for s in samples),
            tuple(s.noisy for s in samples),
            counts=dict.fromkeys(COUNTED, 0)
            | {"rows": len(members), "images": images, "text_only_rows": len(members) - images}
            | {"supervised_tokens": len(batch.labels)},
        )

    def describe(self, index: int) -> dict[str, Any]:
        """Id, image, prompt and answer of a sample."""
        s = self.data.samples[index]
        return {"id": s.id, "image": s.image, "prompt": s.prompt, "answer": s.answer}

    def blind(self, index: int) -> bool:
        """Whether the teacher does not see the sample's image."""
        return self.data.samples[index].blind
