"""Features of both models for the energies that read more than logits: what the student shows, and a teacher beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from harness.base import UserError
from students import models
from students.batch import Tap
from students.blind import Blind
from students.data.pack import Batch, Encoded, collate, encode, prefixes
from students.data.samples import TrainingSet
from students.models.llava import TAPS, LlavaAdapter
from students.teachers import pixel_table

#: Taps that an energy may name in ``needs``; see :meth:`students.models.llava.LlavaAdapter.observe`.
NAMES = frozenset(TAPS)

MEAN_IMAGE = "(mean image)"  # a key that no image can have: the others are hexadecimal


def shown(data: TrainingSet, encoded: Encoded, table: Mapping[str, Tensor]) -> tuple[Encoded, dict[str, Tensor]]:
    """Return what the teacher is shown: to blind samples with an image, the mean of the training images in its place.

    Args:
        data: the samples.
        encoded: their tokens.
        table: preprocessed pixels float32 [3, H, W] of every image that a sample shows.

    Returns:
        ``encoded`` with the blind samples' image keys replaced, and the table with the mean image added (if anyone is blind).
    """
    blind = [s.blind and s.image is not None for s in data]
    if not any(blind):
        return encoded, dict(table)
    mean = torch.as_tensor(sum(table.values()) / len(table))
    images = tuple(MEAN_IMAGE if b else image for b, image in zip(blind, encoded.images, strict=True))
    return replace(encoded, images=images), {**table, MEAN_IMAGE: mean}


def widths(names: Collection[str], student: LlavaAdapter, teacher: LlavaAdapter) -> dict[str, tuple[int, int]]:
    """Return (student, teacher) size of each tap's last axis.

    Raises:
        UserError: for an unknown tap, or when the models make different numbers of tokens of an image: the energies compare
            them one to one.
    """
    if names and student.vision_tokens != teacher.vision_tokens:
        raise _unequal(student.vision_tokens, teacher.vision_tokens)
    return {name: (student.tap_width(name), teacher.tap_width(name)) for name in sorted(names)}


def _unequal(student: int, teacher: int) -> UserError:
    return UserError(
        f"an image takes {student} tokens for the student and {teacher} for the teacher; taps compare them one to one,"
        " so both need the same image size and patch size"
    )


class LiveTeacher:
    """A frozen teacher beside the student, for what is too large to be cached.

    Args:
        folder: its checkpoint.
        data: the samples, in the order in which students number them.
        device: "cpu", "cuda" or another that torch knows.
        blind_teacher: what the cached signal told blind samples (``TeacherSignal.blind_teacher``).

    Raises:
        UserError: for a checkpoint that cannot be read, or blind samples that were told something else than about the mean
            image: a mixture of answers has no one feature.
    """

    def __init__(self, folder: Path, data: TrainingSet, device: torch.device | str, blind_teacher: str = str(Blind())) -> None:
        if blind_teacher != str(Blind()) and any(s.blind and s.image is not None for s in data):
            raise UserError(
                f"the teacher's features are known for blind samples of blind_teacher '{Blind()}' alone, and this signal has"
                f" {blind_teacher!r}; take energies on logits there"
            )
        self.adapter: LlavaAdapter = models.load(folder, str(device))
        self.adapter.model.eval().requires_grad_(False)
        self.device = torch.device(device)
        encoded = encode(data.samples, self.adapter.processor)
        self.encoded, self.pixels = shown(data, encoded, pixel_table(self.adapter, data))
        self._prefixes = prefixes(self.encoded)
        self.passes = 0  # samples observed, repeats counted

    @torch.no_grad()
    def observe(self, members: Sequence[list[int]], wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute the teacher's taps for packed rows, running no more of it than they need.

        The vision tokens come out of tower and projector; attention is causal, so the logits at them need the image's
        prefix alone; the first attention map needs embeddings and no layer's output.

        Args:
            members: rows of sample numbers, as the student's batch was packed from.
            wanted: names of taps.

        Returns:
            The taps as :meth:`LlavaAdapter.observe` gives them, for G groups: the images of the batch in row order, or, where
            a row has blind and seeing samples, one group for each of the two. Beside them "group" int64 [B], each sample's
            group or -1, and, only where rows are mixed, "source" int64 [G], the student's image of each group; with
            "attention", "attention_mask" [B, Q] and "text_tokens" int64 [B], which stays on the CPU.

        Raises:
            UserError: for an unknown tap.
        """
        for name in sorted(wanted):
            self.adapter.tap_width(name)  # refuses unknown names
        self.passes += sum(map(len, members))
        split = _Split(members, self.encoded.images)
        shows = [[part[0]] for part in split.parts if self.encoded.images[part[0]] is not None]
        found: dict[str, Tensor] = {"vision": self._nothing("vision")}
        if shows and "vision_logits" in wanted:
            prefix = collate(self._prefixes, shows, self.pixels).to(self.device)
            found = self.adapter.observe(prefix, {"vision", "vision_logits"})[1]
        elif shows:
            pixels = torch.stack([self.pixels[str(self.encoded.images[first])] for (first,) in shows])
            found["vision"] = self.adapter.vision(pixels.to(self.device))
        elif "vision_logits" in wanted:
            found["vision_logits"] = self._nothing("vision_logits")
        if "attention" in wanted:
            batch = collate(self.encoded, split.parts, self.pixels)
            attention, mask = self.adapter.attention(batch.to(self.device), found["vision"])
            order = split.order.to(self.device)
            found |= {"attention": attention[order], "attention_mask": mask[order]}
            found["text_tokens"] = torch.tensor(batch.text_tokens)[split.order]
        found = {name: tap for name, tap in found.items() if name != "vision" or name in wanted}
        found["group"] = split.group.to(self.device)
        if split.mixed:
            found["source"] = split.source.to(self.device)
        return found

    def _nothing(self, name: str) -> Tensor:
        """Taps of a batch without images."""
        return torch.zeros(0, self.adapter.vision_tokens, self.adapter.tap_width(name), device=self.device)


class _Split:
    """Rows cut where blind and seeing samples share one, so that every part shows the teacher one image or none.

    Attributes:
        parts: rows of sample numbers.
        order: [B] int64, where each sample of the batch stands among the parts' samples.
        group: [B] int64, the part with an image (numbered in order) that holds a sample, or -1.
        source: [G] int64, the batch's image that each of those parts came from.
        mixed: whether a row was cut.
    """

    def __init__(self, members: Sequence[list[int]], images: Sequence[str | None]) -> None:
        self.parts: list[list[int]] = []
        places: list[int] = []
        groups: list[int] = []
        source: list[int] = []
        start = rows_with_image = 0
        for row in members:
            by_image: dict[str | None, list[int]] = {}
            for place, index in enumerate(row):
                by_image.setdefault(images[index], []).append(place)
            for image, held in by_image.items():
                self.parts.append([row[place] for place in held])
                places += [start + place for place in held]
                groups += [-1 if image is None else len(source)] * len(held)
                if image is not None:
                    source.append(rows_with_image)
            start += len(row)
            rows_with_image += None not in by_image
        self.order = torch.tensor(places).argsort()
        self.group = torch.tensor(groups)[self.order]
        self.source = torch.tensor(source, dtype=torch.int64)
        self.mixed = len(self.parts) != len(members)


def pair(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> dict[str, Tap]:
    """Join what both models showed, group by group.

    Args:
        student: taps of the batch, from :meth:`LlavaAdapter.observe`.
        teacher: the teacher's for the same rows, from :meth:`LiveTeacher.observe`.
        batch: the student's batch.

    Raises:
        UserError: when the models differ in vision tokens an image, or in text tokens of a sample, naming both numbers.
    """
    taps = {}
    for name in sorted(NAMES & student.keys()):
        mine, other = student[name], teacher[name]
        axis = 2 if name == "attention" else 1
        if mine.shape[axis] != other.shape[axis]:
            raise _unequal(mine.shape[axis], other.shape[axis])
        if name == "attention":
            _same_text(batch, teacher["text_tokens"].tolist())
            owner = torch.where(batch.image >= 0, torch.arange(len(mine), device=mine.device), -1)
            taps[name] = Tap(mine, other, owner, student["attention_mask"])
        else:
            taps[name] = Tap(mine[teacher["source"]] if "source" in teacher else mine, other, teacher["group"])
    return taps


def _same_text(batch: Batch, teacher: Sequence[int]) -> None:
    """Text tokens are aligned by sample and number, never by column; that takes equally many of them."""
    for index, mine, other in zip(batch.indices, batch.text_tokens, teacher, strict=True):
        if mine != other:
            raise UserError(
                f"sample number {index} has {mine} tokens of text for the student and {other} for the teacher;"
                " attention can be compared only under the same chat template and tokenizer"
            )
