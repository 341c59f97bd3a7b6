"""The teacher as a training hears it: cached or live, packed or streamed, all look alike."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from harness.base import UserError
from students import taps
from students.batch import Tap, sample_mean, wide
from students.stored import Spoken, Stored, parts
from students.vision.pictures import MEAN_IMAGE

if TYPE_CHECKING:
    from students.data.conversations import Corpus
    from students.data.pack import Batch, Encoded
    from students.data.samples import TrainingSet
    from students.feed import Part
    from students.models._base import Adapter
    from students.teacher_signal.kept import KeptVision
    from students.teacher_signal.reading import TeacherSignal
    from students.teacher_signal.stream_reading import StreamSignal


@dataclass
class Said:
    """What the teacher says about the B samples and N supervised tokens of a micro-batch; without gradient.

    Attributes:
        logits: [N, V] or bins, V the real vocabulary, aligned with the student's by (sample, n-th supervised token).
        entropy: [B] float32, nats, mean over a sample's tokens.
        correct: [B] bool, whether the greedy reply is the clean one; None where nobody asked to record it.
        prompt: [B, H] state at the last prompt position, on request.
        vision: [B, H] mean projected vision token of what the teacher was shown, on request; 0 where ``seen`` is False.
        seen: [B] bool, whether it was shown an image; beside ``vision``.
        taps: student's and teacher's features by name, on request.
    """

    logits: Spoken
    entropy: Tensor
    correct: Tensor | None
    prompt: Tensor | None = None
    vision: Tensor | None = None
    seen: Tensor | None = None
    taps: dict[str, Tap] | None = None


class Voice(abc.ABC):
    """A teacher.

    Attributes:
        vocabulary: the V tokens that logits are for, in order.
        width: H of its prompt states and vision tokens.
        adapter: the model beside the student, where there is one.
        passes: samples that it looked at for this student alone, repeats counted.
        shared: samples that it looked at once for all students.
    """

    vocabulary: tuple[str, ...]
    vocabulary_size: int
    width: int
    adapter: Adapter | None = None
    passes: int = 0
    shared: int = 0

    @abc.abstractmethod
    def hear(self, part: Part, batch: Batch, student: Mapping[str, Tensor], record: bool, states: bool) -> Said:
        """Ask about a micro-batch.

        Args:
            part: the micro-batch, on the host.
            batch: its batch, on the device.
            student: the student's taps of it, by name, as its adapter observes them; the teacher's are paired with them.
            record: whether ``correct`` is needed.
            states: whether ``prompt``, ``vision`` and ``seen`` are.
        """

    def widths(self, wanted: frozenset[str], student: Adapter) -> dict[str, tuple[int, int]]:
        """Return (student, teacher) size of each tap's last axis; see :func:`students.taps.widths`."""
        return taps.widths(wanted, student, self.adapter) if self.adapter is not None else {}

    def facts(self, part: Part) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002 - a cached one reads it
        """Return entropy and correctness [B] where they are known without asking, else None."""
        return None


class CachedVoice(Voice):
    """A signal that was computed once for all students, with what an energy reads beside it, kept or from a live teacher.

    Args:
        signal: the cached signal.
        data, encoded: the samples and their tokens.
        live: for taps, or None where nobody reads any that are not kept.
        device: where answers go.
        kept: taps that are kept, or None.

    Raises:
        UserError: when the signal was made for other samples.
    """

    def __init__(
        self,
        signal: TeacherSignal,
        data: TrainingSet,
        encoded: Encoded,
        live: taps.LiveTeacher | None,
        device: torch.device,
        kept: KeptVision | None = None,
    ) -> None:
        if signal.ids != tuple(s.id for s in data):
            raise UserError("the teacher signal was made for other samples, or another order of them; remake it")
        self.signal, self.data, self.encoded, self.live, self.device = signal, data, encoded, live, device
        self.vocabulary, self.width, self.shared = signal.vocabulary, int(signal.prompt.shape[1]), len(signal.ids)
        self.vocabulary_size = signal.vocabulary_size
        self.adapter, self.kept = live.adapter if live else None, kept
        if kept is not None:
            taps.refuse_mixture(data, signal.blind_teacher)
            blind = [MEAN_IMAGE if s.blind and s.image is not None else s.image for s in data]
            self._shown: list[str | None] = blind

    def widths(self, wanted: frozenset[str], student: Adapter) -> dict[str, tuple[int, int]]:
        """As :meth:`Voice.widths`; of kept taps too."""
        return super().widths(wanted, student) if self.kept is None else self.kept.widths(wanted, student)

    def hear(
        self,
        part: Part,
        batch: Batch,
        student: Mapping[str, Tensor],
        record: bool,  # noqa: ARG002 - the signal knows
        states: bool,
    ) -> Said:
        """Look the samples up; see :meth:`Voice.hear`.

        Raises:
            UserError: when the signal was made for another reply of some of them.
        """
        signal, indices = self.signal, part.batch.indices
        if not np.array_equal(signal.labels(indices), part.batch.labels.numpy()):
            wrong = [self.data.samples[k].id for k in indices if list(signal.labels([k])) != list(self.encoded.answers[k])]
            raise UserError(f"the teacher signal was made for another reply of sample(s) {', '.join(wrong[:5])}; remake it")
        entropy, correct = self.facts(part)
        said = Said(signal.logits(indices).to(self.device, non_blocking=True), entropy, correct)
        if states:
            said.prompt, said.vision = signal.prompt_state(indices), signal.vision(indices)
            said.seen = torch.as_tensor(signal.seen[list(indices)])
        if self.kept is not None:
            said.taps = taps.pair(student, self.kept.packed(part.members, self._shown), batch)
        elif self.live is not None:
            wanted = taps.NAMES & student.keys()
            said.taps = taps.pair(student, self.live.observe(part.members, wanted), batch)
            self.passes += len(indices)
        return said

    def facts(self, part: Part) -> tuple[Tensor, Tensor]:
        """Entropy and correctness as they were cached."""
        indices = list(part.batch.indices)
        return torch.as_tensor(self.signal.entropy[indices]), torch.as_tensor(self.signal.correct[indices])


class CachedStreamVoice(Voice):
    """A signal of a corpus that was computed once for all students.

    Args:
        signal: the cached signal.
        corpus: the rows.
        device: where answers go.
        kept: taps that are kept, or None where nobody reads any.

    Raises:
        UserError: when the signal was made of another corpus.
    """

    def __init__(self, signal: StreamSignal, corpus: Corpus, device: torch.device, kept: KeptVision | None = None) -> None:
        if signal.corpus != corpus.digest or len(signal) != len(corpus):
            raise UserError(f"the teacher signal was made of another corpus than {corpus.name!r}; remake it")
        self.signal, self.corpus, self.device, self.kept = signal, corpus, device, kept
        self.vocabulary, self.vocabulary_size = signal.vocabulary, len(signal.vocabulary)
        self.width, self.shared = signal.width, len(signal)

    def widths(self, wanted: frozenset[str], student: Adapter) -> dict[str, tuple[int, int]]:
        """As :meth:`Voice.widths`, of kept taps."""
        return {} if self.kept is None else self.kept.widths(wanted, student)

    def hear(
        self,
        part: Part,
        batch: Batch,
        student: Mapping[str, Tensor],
        record: bool,  # noqa: ARG002 - the signal knows
        states: bool,
    ) -> Said:
        """Look the rows up; see :meth:`Voice.hear`.

        Raises:
            UserError: for a row of which the student learns other tokens than the teacher spoke about.
        """
        told = self.signal.hear(part.batch, part.ids, part.cut)
        said = Said(told.logits.to(self.device, non_blocking=True), told.entropy, told.correct)
        if states:
            said.prompt, said.vision, said.seen = self.signal.states(part.batch.indices)
        if self.kept is not None:
            said.taps = taps.pair(student, self.kept.streamed(part.batch, self.corpus), batch)
        return said

    def facts(self, part: Part) -> tuple[Tensor, Tensor]:
        """Entropy and correctness of the tokens that the student has."""
        told = self.signal.hear(part.batch, part.ids, part.cut, distributions=False)
        return told.entropy, told.correct


def entropy_of(logits: Tensor | Stored, sample: Tensor, count: int) -> Tensor:
    """Mean entropy in nats of each sample's tokens, [N, V] -> [B] float32."""
    each = torch.cat([entropies(part) for part in parts(logits)])
    return sample_mean(each, sample, count).float()


def entropies(logits: Tensor) -> Tensor:
    """Entropy in nats of each token, [N, V] -> [N]; a banned (-inf) token adds nothing."""
    log_p = wide(logits).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


def greedy(logits: Tensor | Stored, labels: Tensor, sample: Tensor, count: int) -> Tensor:
    """Whether the most probable tokens [N, V] of each sample are its labels: [B] bool."""
    wrong = (torch.cat([part.argmax(-1) for part in parts(logits)]) != labels).float()
    return wrong.new_zeros(count).index_add(0, sample, wrong) == 0
