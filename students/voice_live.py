"""A teacher that answers at every step: of packed questions, or of conversations of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from students import taps
from students.align import differ
from students.blind import Blind, others
from students.data.pack import Encoded, collate
from students.stored import held
from students.voice import Said, Voice, entropy_of, greedy

if TYPE_CHECKING:
    from students.data.pack import Batch
    from students.data.samples import TrainingSet
    from students.feed import Members, Part
    from students.models._base import Adapter


class Look(NamedTuple):
    """What the teacher answers: logits [N, V], prompt states [B, H] and mean vision tokens [B, H], in sample order."""

    logits: Tensor
    prompt: Tensor
    vision: Tensor


class PackedVoice(Voice):
    """What :func:`students.teacher_signal.packed.cache` would have written, asked for step by step.

    Args:
        folder: the teacher's checkpoint.
        data: the samples, in the order that students number them.
        blind: what is said about blind samples.
        device: where the teacher is.
        dtype: what its weights are stored in.
        vision: folder of stored features of the images, read where its tower is that tower; None where nothing is stored.

    Raises:
        UserError: for a checkpoint that cannot be read, or too few images to shuffle.
    """

    adapter: Adapter

    def __init__(
        self,
        folder: Path,
        data: TrainingSet,
        blind: Blind,
        device: torch.device,
        dtype: torch.dtype,
        vision: Path | None = None,
    ) -> None:
        # blind samples see the mean image
        self.teacher = taps.LiveTeacher(folder, data, device, dtype=dtype, vision=vision)
        self.adapter, self.data, self.blind, self.device, self.dtype = self.teacher.adapter, data, blind, device, dtype
        self.vocabulary, self.vocabulary_size = self.adapter.tokens(), self.adapter.vocabulary_size
        self.width = self.adapter.hidden_size
        self.views: list[tuple[str | None, ...]] = [(image,) for image in self.teacher.encoded.images]
        if blind.says != "mean_image":
            drawn = others(data, blind.seed)
            self.views = [drawn[s.benchmark, s.image] if s.blind and s.image is not None else (s.image,) for s in data]
        self.seen = torch.tensor([s.image is not None for s in data])

    def hear(self, part: Part, batch: Batch, student: Mapping[str, Tensor], record: bool, states: bool) -> Said:
        """Ask about packed rows; see :meth:`Voice.hear`.

        Raises:
            UserError: for a reply that the teacher's tokenizer splits otherwise, and for taps of blind samples that hear a
                mixture of answers.
        """
        wanted = taps.NAMES & student.keys()
        if wanted:
            taps.refuse_mixture(self.data, str(self.blind))
        self._same_replies(part)
        count = len(batch.indices)
        with torch.no_grad(), taps.thinking(self.device, self.dtype):
            look = self._mixed(part.members, self.teacher.encoded)
            correct = self._correct(part, batch, look.logits) if record else None
        self.passes += count
        said = Said(look.logits, entropy_of(look.logits, batch.sample, count), correct)
        if states:
            said.prompt, said.vision = look.prompt, look.vision
            said.seen = self.seen[list(batch.indices)].to(self.device)
        if wanted:
            said.taps = taps.pair(student, self.teacher.observe(part.members, wanted), batch)
        return said

    def _same_replies(self, part: Part) -> None:
        own = [part.batch.labels.numpy()[part.batch.sample.numpy() == k] for k in range(len(part.ids))]
        for name, index, mine in zip(part.ids, part.batch.indices, own, strict=True):
            if not np.array_equal(mine, self.teacher.encoded.answers[index]):
                raise differ(name, mine, self.teacher.encoded.answers[index], self.vocabulary)

    def _mixed(self, members: Members, encoded: Encoded) -> Look:
        """Answer rows; where samples have several views, by log mean probabilities, and means of prompt states and vision."""
        first = self._look(members, encoded, 0)
        counts = [len(self.views[k]) for row in members for k in row]
        if max(counts) == 1:
            return first
        several = [kept for row in members if (kept := [k for k in row if len(self.views[k]) > 1])]
        some = torch.tensor(counts).to(self.device) > 1
        tokens = some.repeat_interleave(torch.tensor([len(encoded.answers[k]) for r in members for k in r]).to(self.device))
        looks = [Look(first.logits[tokens], first.prompt[some], first.vision[some])]
        looks += [self._look(several, encoded, view) for view in range(1, max(counts))]
        said = torch.stack([look.logits.log_softmax(-1) for look in looks]).logsumexp(0) - float(np.log(len(looks)))
        logits, prompt, vision = (value.clone() for value in first)
        logits[tokens] = said
        prompt[some] = torch.stack([look.prompt for look in looks]).mean(0)
        vision[some] = torch.stack([look.vision for look in looks]).mean(0)
        return Look(logits, prompt, vision)

    def _look(self, members: Members, encoded: Encoded, view: int) -> Look:
        """Run the teacher over rows, each sample shown its image of this view."""
        encoded = replace(encoded, images=tuple(views[min(view, len(views) - 1)] for views in self.views))
        split = taps.Split(members, encoded.images)
        batch = collate(encoded, split.parts, self.teacher.pixels).to(self.device)
        hidden, found = self.adapter.observe(batch, frozenset({"vision"}))
        logits = self.adapter.head(self.adapter.supervised(hidden, batch))[:, : len(self.vocabulary)].float()
        pooled = found["vision"].float().mean(1)
        vision = torch.cat([pooled, pooled.new_zeros(1, self.width)])[split.group.to(self.device)]  # -1 reads the last
        prompt = self.adapter.prompt_state(hidden, batch).float()
        if not split.mixed:
            return Look(logits, prompt, vision)
        asked = [k for part in split.parts for k in part]
        ends = np.cumsum([len(encoded.answers[k]) for k in asked])
        spans = [np.arange(ends[place] - len(encoded.answers[asked[place]]), ends[place]) for place in split.order.tolist()]
        order = torch.from_numpy(np.concatenate(spans)).to(self.device)
        return Look(logits[order], prompt[split.order.to(self.device)], vision)

    def _correct(self, part: Part, batch: Batch, logits: Tensor) -> Tensor:
        """Whether the greedy reply is the clean answer; a noisy label would be its context, so those are asked once more."""
        right = greedy(logits, batch.labels, batch.sample, len(batch.indices))
        encoded = self.teacher.encoded
        noisy = [not np.array_equal(encoded.answers[k], encoded.clean[k]) for k in batch.indices]
        if not any(noisy):
            return right
        ask = iter(noisy)
        members = [kept for row in part.members if (kept := [k for k in row if next(ask)])]
        again = self._mixed(members, replace(encoded, answers=encoded.clean)).logits
        replies = [encoded.clean[k] for row in members for k in row]
        labels = torch.from_numpy(np.concatenate(replies)).to(self.device)
        sample = torch.from_numpy(np.repeat(np.arange(len(replies)), [len(r) for r in replies])).to(self.device)
        places = torch.tensor([k for k, is_noisy in enumerate(noisy) if is_noisy], device=self.device)
        return right.index_put((places,), greedy(again, labels, sample, len(replies)))


class StreamVoice(Voice):
    """A teacher that reads the conversations that the student reads, through its own template and image tokens.

    Args:
        adapter: the teacher, frozen.
        device: where it is.
        dtype: what its weights are stored in.
    """

    adapter: Adapter

    def __init__(self, adapter: Adapter, device: torch.device, dtype: torch.dtype) -> None:
        self.adapter, self.device, self.dtype = adapter, device, dtype
        self.vocabulary, self.vocabulary_size, self.width = adapter.tokens(), adapter.vocabulary_size, adapter.hidden_size

    def hear(self, part: Part, batch: Batch, student: Mapping[str, Tensor], record: bool, states: bool) -> Said:
        """Ask about rows of a stream; see :meth:`Voice.hear`. One pass gives logits, states and taps.

        Raises:
            UserError: where the models differ in vision tokens an image, or in text that taps compare.
        """
        if part.hearing is None:
            raise ValueError("a stream without a teacher's rows was given to a teacher")
        wanted = taps.NAMES & student.keys()
        theirs = part.hearing.batch.to(self.device)
        count = len(batch.indices)
        with torch.no_grad(), taps.thinking(self.device, self.dtype):
            hidden, found = self.adapter.observe(theirs, wanted | {"vision"} if states else wanted)
            supervised = self.adapter.supervised(hidden, theirs)
            if part.hearing.tokens is not None:
                supervised = supervised[part.hearing.tokens.to(self.device)]
        logits = held(len(supervised), len(self.vocabulary), lambda where: self._say(supervised[where]))
        self.passes += count
        correct = greedy(logits, batch.labels, batch.sample, count) if record else None
        said = Said(logits, entropy_of(logits, batch.sample, count), correct)
        if states:
            said.prompt = self.adapter.prompt_state(hidden, theirs).float()
            said.vision, said.seen = taps.pooled(found["vision"], theirs)
        if wanted:
            said.taps = taps.pair(student, taps.streamed(found, theirs, batch, part.cut), batch)
        return said

    @torch.no_grad()
    def _say(self, states: Tensor) -> Tensor:
        """Logits [n, V] of states [n, H]; the backward pass of a student may ask for them once more."""
        with taps.thinking(self.device, self.dtype):
            return self.adapter.head(states)[:, : len(self.vocabulary)].float()
