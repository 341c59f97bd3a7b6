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
from students.models._base import TAPS, Adapter, common_vision_tokens
from students.vision import pictures
from students.vision.pictures import MEAN_IMAGE, mean_image

#: Taps that an energy may name in ``needs``; see :meth:`students.models._base.Adapter.observe`.
NAMES = frozenset(TAPS)


def shown(data: TrainingSet, encoded: Encoded, table: Mapping[str, Tensor]) -> tuple[Encoded, Mapping[str, Tensor]]:
    """Return what the teacher is shown: to blind samples with an image, the mean of the training images in its place.

    Args:
        data: the samples.
        encoded: their tokens.
        table: preprocessed pixels float32 [3, H, W] of every image that a sample shows; or features, those of the mean image
            among them where anyone is blind: a tower's features of a mean are not the mean of its features.

    Returns:
        ``encoded`` with the blind samples' image keys replaced, and the table with the mean image added (if anyone is blind).
    """
    blind = [s.blind and s.image is not None for s in data]
    if not any(blind):
        return encoded, table
    images = tuple(MEAN_IMAGE if b else image for b, image in zip(blind, encoded.images, strict=True))
    if MEAN_IMAGE not in table:
        table = {**table, MEAN_IMAGE: mean_image(table)}
    return replace(encoded, images=images), table


def widths(names: Collection[str], student: Adapter, teacher: Adapter) -> dict[str, tuple[int, int]]:
    """Return (student, teacher) size of each tap's last axis.

    Raises:
        UserError: for an unknown tap, or when the models make different numbers of tokens of an image: the energies compare
            them one to one.
    """
    if names:
        common_vision_tokens(student, teacher)
    return {name: (student.tap_width(name), teacher.tap_width(name)) for name in sorted(names)}


def unequal(student: int | None, teacher: int) -> UserError:
    """Build the error for models that make different numbers of tokens of an image."""
    count = "a variable number of" if student is None else student
    return UserError(
        f"an image takes {count} tokens for the student and {teacher} for the teacher; taps compare them one to one,"
        " so both need the same image size and patch size"
    )


def frozen(folder: Path, device: torch.device | str, dtype: torch.dtype) -> Adapter:
    """Load a checkpoint that never learns."""
    adapter = models.load(folder, str(device), dtype)
    adapter.model.eval().requires_grad_(False)
    return adapter


def thinking(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context that a frozen model runs in: autocast where its weights are in half precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def refuse_mixture(data: TrainingSet, blind_teacher: str) -> None:
    """Refuse features of a teacher whose answers about blind samples are mixtures, which have no one feature.

    Raises:
        UserError: when there are blind samples, and they are told something else than about the mean image.
    """
    if blind_teacher != str(Blind()) and any(s.blind and s.image is not None for s in data):
        raise UserError(
            f"the teacher's features are known for blind samples of blind_teacher '{Blind()}' alone, and this signal has"
            f" {blind_teacher!r}; take energies on logits there"
        )


class LiveTeacher:
    """A frozen teacher beside the student, for what is too large to be cached.

    Args:
        folder: its checkpoint.
        data: the samples, in the order in which students number them.
        device: "cpu", "cuda" or another that torch knows.
        blind_teacher: what the cached signal told blind samples (``TeacherSignal.blind_teacher``).
        dtype: what its weights are stored in.
        vision: folder of stored features of the images, read where its tower is that tower; None where nothing is stored.

    Raises:
        UserError: for a checkpoint that cannot be read, or blind samples that were told something else than about the mean
            image: a mixture of answers has no one feature.
    """

    def __init__(
        self,
        folder: Path,
        data: TrainingSet,
        device: torch.device | str,
        blind_teacher: str = str(Blind()),
        dtype: torch.dtype = torch.float32,
        vision: Path | None = None,
    ) -> None:
        refuse_mixture(data, blind_teacher)
        self.adapter = frozen(folder, device, dtype)
        self.device, self.dtype = torch.device(device), dtype
        encoded = encode(data.samples, self.adapter.processor)
        table, self.vision = pictures.table(self.adapter, data, vision, dtype == torch.bfloat16)
        self.encoded, self.pixels = shown(data, encoded, table)
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
            The taps as :meth:`Adapter.observe` gives them, for G groups: the images of the batch in row order, or, where
            a row has blind and seeing samples, one group for each of the two. Beside them "group" int64 [B], each sample's
            group or -1, and, only where rows are mixed, "source" int64 [G], the student's image of each group; with
            "attention", "attention_mask" [B, Q] and "text_tokens" int64 [B], which stays on the CPU.

        Raises:
            UserError: for an unknown tap.
        """
        for name in sorted(wanted):
            self.adapter.tap_width(name)  # refuses unknown names
        self.passes += sum(map(len, members))
        split = Split(members, self.encoded.images)
        with thinking(self.device, self.dtype):
            found = self._observe(split, wanted)
        found["group"] = split.group.to(self.device)
        if split.mixed:
            found["source"] = split.source.to(self.device)
        return found

    def _observe(self, split: Split, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute the taps of rows that show one image or none each."""
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
        return {name: tap for name, tap in found.items() if name != "vision" or name in wanted}

    def _nothing(self, name: str) -> Tensor:
        """Taps of a batch without images."""
        n_v = common_vision_tokens(self.adapter, self.adapter)
        return torch.zeros(0, n_v, self.adapter.tap_width(name), device=self.device)


class Split:
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
        student: taps of the batch, from :meth:`Adapter.observe`.
        teacher: the teacher's for the same rows, from :meth:`LiveTeacher.observe`, or as an adapter observes them with
            "group" and "text_tokens" beside them.
        batch: the student's batch.

    Returns:
        Taps by image of the batch; where a row of the batch shows several images, by row: its images' tokens one after the
        other, with a mask. Attention is to all images of a sample's row.

    Raises:
        UserError: when the models differ in vision tokens an image, or in text tokens of a sample, naming both numbers.
    """
    taps = {}
    several = max(batch.pictures, default=0) > 1
    for name in sorted(NAMES & student.keys()):
        mine, other = student[name], teacher[name]
        axis = 2 if name == "attention" else 1
        if mine.shape[axis] != other.shape[axis]:
            raise unequal(mine.shape[axis], other.shape[axis])
        if name == "attention":
            _same_text(batch, teacher["text_tokens"].tolist())
            owner = torch.where(batch.image >= 0, torch.arange(len(mine), device=mine.device), -1)
            taps[name] = Tap(mine, other, owner, student["attention_mask"])
        elif several:
            index, group = _slots(batch.pictures, mine.device)
            mask = (index >= 0).repeat_interleave(mine.shape[1], 1)
            taps[name] = Tap(_spread(mine, index), _spread(other, index), group, mask)
        else:
            taps[name] = Tap(mine[teacher["source"]] if "source" in teacher else mine, other, teacher["group"])
    return taps


def streamed(found: Mapping[str, Tensor], theirs: Batch, student: Batch, cut: Sequence[bool]) -> dict[str, Tensor]:
    """Add to the taps that an adapter observed of a stream's batch what :func:`pair` reads beside them.

    Where the student's row was cut off, the teacher's text and images may go on; they are compared as far as the student's go.

    Args:
        found: the teacher's taps.
        theirs, student: the batches of both.
        cut: for each sample, whether the student's row was cut off.
    """
    result = {**found, "group": student.image}
    if theirs.pictures != student.pictures:
        shown = zip(theirs.pictures, student.pictures, strict=True)
        kept = torch.tensor([slot < mine for other, mine in shown for slot in range(other)], dtype=torch.bool)
        result |= {name: found[name][kept.to(found[name].device)] for name in ("vision", "vision_logits") if name in found}
    if "attention" in found:
        each = found["attention"].shape[2] // max((1, *theirs.pictures))  # keys an image
        result["attention"] = found["attention"][:, :, : each * max((1, *student.pictures))]
        counts = [
            other if not was_cut else min(own, other) if pictures else own  # without an image nothing of it is compared
            for own, other, was_cut, pictures in zip(
                student.text_tokens, theirs.text_tokens, cut, student.pictures, strict=True
            )
        ]
        result["text_tokens"] = torch.tensor(counts)
        width = student.text.shape[1]
        if counts == list(student.text_tokens) and found["attention"].shape[1] != width:
            result["attention"] = _as_long(result["attention"], width)
    return result


def _as_long(attention: Tensor, width: int) -> Tensor:
    """Cut or pad queries [B, Q, ...] to [B, width, ...]."""
    missing = width - attention.shape[1]
    return torch.nn.functional.pad(attention, (0, 0, 0, 0, 0, missing)) if missing > 0 else attention[:, :width]


def pooled(vision: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the mean vision token of each sample's images [B, H] float32, 0 where it has none, and whether it has [B] bool."""
    means, seen = vision.float().mean(1), batch.image >= 0
    nothing = means.new_zeros(1, means.shape[1])
    if max(batch.pictures, default=0) > 1:
        owner = torch.repeat_interleave(torch.tensor(batch.pictures)).to(means.device)
        sums = means.new_zeros(len(seen), means.shape[1]).index_add(0, owner, means)
        return sums / torch.tensor(batch.pictures).clamp(min=1).to(means.device)[:, None], seen
    return torch.cat([means, nothing])[batch.image], seen  # -1 reads the last


def _slots(pictures: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the images of each row that shows some, int64 [G, most], -1 beyond its last; and each row's group [B] or -1."""
    most, image = max(pictures), 0
    rows: list[list[int]] = []
    groups: list[int] = []
    for count in pictures:
        groups.append(len(rows) if count else -1)
        if count:
            rows.append([*range(image, image + count), *([-1] * (most - count))])
        image += count
    return torch.tensor(rows, device=device), torch.tensor(groups, device=device)


def _spread(tap: Tensor, index: Tensor) -> Tensor:
    """Join the tokens of each group's images: [I, n_v, C] -> [G, most * n_v, C], zeros where a group has fewer."""
    nothing = tap.new_zeros(1, *tap.shape[1:])
    return torch.cat([tap, nothing])[index].flatten(1, 2)  # -1 reads the last


def _same_text(batch: Batch, teacher: Sequence[int]) -> None:
    """Text tokens are aligned by sample and number, never by column; that takes equally many of them."""
    for index, mine, other in zip(batch.indices, batch.text_tokens, teacher, strict=True):
        if mine != other:
            raise UserError(
                f"sample number {index} has {mine} tokens of text for the student and {other} for the teacher;"
                " attention can be compared only under the same chat template and tokenizer"
            )
