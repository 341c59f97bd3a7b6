"""What a weighting's gate may look at: detached representations of a sample, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.base import UserError, unknown
from students.batch import sample_mean, wide

if TYPE_CHECKING:
    from students.data.pack import Batch
    from students.data.samples import TrainingSet
    from students.models.llava import LlavaAdapter
    from students.teachers import TeacherSignal


@dataclass
class Seen:
    """One micro-batch as the gate's features see it: hidden states [R, L, H], logits [N, V], the teacher's or None."""

    batch: Batch
    hidden: Tensor
    logits: Tensor
    teacher: Tensor | None


def scalars(logits: Tensor, sample: Tensor, count: int) -> Tensor:
    """Return [B, 2]: mean entropy over a sample's answer tokens as a share of log V, and mean top probability.

    Args:
        logits: [N, V], -inf for banned tokens.
        sample: [N] int64 in 0..count-1.
        count: B.
    """
    log_p = wide(logits.detach()).log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1) / torch.log(torch.tensor(float(logits.shape[-1])))
    return torch.stack([sample_mean(entropy, sample, count), sample_mean(p.amax(-1), sample, count)], 1)


def _normed(state: Tensor) -> Tensor:
    """Layer norm without learned parameters: gates see directions, whatever a model's scale."""
    return torch.nn.functional.layer_norm(wide(state), state.shape[-1:])


class Features:
    """Computes the features that a weighting asks for.

    Args:
        names: in the order of their columns.
        adapter: the student.
        signal: the teacher's signal, or None.
        data: the samples, for the planted truth.

    Raises:
        UserError: for an unknown feature, one of the teacher's without a teacher, or the planted truth where nothing is
            planted.
    """

    def __init__(self, names: Sequence[str], adapter: LlavaAdapter, signal: TeacherSignal | None, data: TrainingSet) -> None:
        self.names, self.adapter, self.signal, self.data = tuple(names), adapter, signal, data
        student = {"student_prompt": (adapter.hidden_size, self._student_prompt), "student_scalars": (2, self._student_scalars)}
        known: dict[str, tuple[int, Callable[[Seen], Tensor]]] = dict(student)
        if signal is not None:
            known |= {
                "teacher_prompt": (int(signal.prompt.shape[1]), self._teacher_prompt),
                "teacher_vision": (int(signal.vision_array.shape[1]), self._teacher_vision),
                "teacher_scalars": (2, self._teacher_scalars),
                "scalars": (4, self._scalars),
                "blind": (1, self._blind),
            }
        for name in self.names:
            if name not in known:
                without = "" if signal is not None else " without a teacher signal"
                raise unknown(f"feature of a weighting{without}:", name, known)
        if "blind" in self.names and not any(s.blind for s in data):
            raise UserError("feature 'blind' is the planted truth, and no sample of this data is blind; see --preset planted")
        self.width = sum(known[name][0] for name in self.names)
        self._known = known

    def __call__(self, seen: Seen) -> Tensor | None:
        """Return detached features [B, F], at least float32, or None where no name was asked for."""
        parts = [self._known[name][1](seen).detach().to(seen.logits.device) for name in self.names]
        return torch.cat(parts, 1) if parts else None

    def _student_prompt(self, seen: Seen) -> Tensor:
        return _normed(self.adapter.prompt_state(seen.hidden, seen.batch))

    def _teacher_prompt(self, seen: Seen) -> Tensor:
        return _normed(self._teacher().prompt_state(seen.batch.indices))

    def _teacher_vision(self, seen: Seen) -> Tensor:
        """Image-less samples show the zero vector, so that the gate learns one weight for all of them."""
        signal = self._teacher()
        there = torch.as_tensor(signal.seen[list(seen.batch.indices)])
        return torch.where(there[:, None], _normed(signal.vision(seen.batch.indices)), 0.0)

    def _student_scalars(self, seen: Seen) -> Tensor:
        return scalars(seen.logits, seen.batch.sample, len(seen.batch.indices))

    def _teacher_scalars(self, seen: Seen) -> Tensor:
        if seen.teacher is None:
            raise ValueError("the teacher's scalars were asked for without its logits")
        return scalars(seen.teacher, seen.batch.sample, len(seen.batch.indices))

    def _scalars(self, seen: Seen) -> Tensor:
        return torch.cat([self._teacher_scalars(seen), self._student_scalars(seen)], 1)

    def _blind(self, seen: Seen) -> Tensor:
        return torch.tensor([[float(self.data.samples[k].blind)] for k in seen.batch.indices])

    def _teacher(self) -> TeacherSignal:
        if self.signal is None:
            raise ValueError("a feature of the teacher was asked for without a teacher signal")
        return self.signal
