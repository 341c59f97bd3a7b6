"""What a weighting's gate may look at: detached representations of a sample, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.base import UserError, unknown
from students.batch import sample_mean, wide
from students.bins import Bins

if TYPE_CHECKING:
    from students.data.pack import Batch
    from students.feed import Feed
    from students.models._base import Adapter
    from students.voice import Said, Voice

#: Features for which a teacher must say more than its logits.
STATES = frozenset({"teacher_prompt", "teacher_vision"})


@dataclass
class Seen:
    """One micro-batch as the gate's features see it.

    Attributes:
        batch: the micro-batch.
        hidden: hidden states [R, L, H].
        logits: [N, V]; [0, V] where they were made in chunks.
        said: what the teacher said, or None.
        scalars: {"student" or "teacher": [B, 2]}, see :func:`scalars`, where logits were made in chunks.
    """

    batch: Batch
    hidden: Tensor
    logits: Tensor
    said: Said | None
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


def token_scalars(logits: Tensor) -> Tensor:
    """Return [N, 2]: each token's entropy as a share of log V, and its top probability; logits [N, V], -inf where banned."""
    log_p = wide(logits.detach()).log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1) / torch.log(torch.tensor(float(logits.shape[-1])))
    return torch.stack([entropy, p.amax(-1)], 1)


def sample_scalars(tokens: Tensor, sample: Tensor, count: int) -> Tensor:
    """Return [B, 2], the means of :func:`token_scalars` [N, 2] over each sample's answer tokens.

    Args:
        tokens: [N, 2].
        sample: [N] int64 in 0..count-1.
        count: B.
    """
    return torch.stack([sample_mean(column, sample, count) for column in tokens.unbind(1)], 1)


def scalars(logits: Tensor, sample: Tensor, count: int) -> Tensor:
    """Return [B, 2]: mean entropy over a sample's answer tokens as a share of log V, and mean top probability.

    Args:
        logits: [N, V], -inf for banned tokens.
        sample: [N] int64 in 0..count-1.
        count: B.
    """
    return sample_scalars(token_scalars(logits), sample, count)


def _normed(state: Tensor) -> Tensor:
    """Layer norm without learned parameters: gates see directions, whatever a model's scale."""
    return torch.nn.functional.layer_norm(wide(state), state.shape[-1:])


class Features:
    """Computes the features that a weighting asks for.

    Args:
        names: in the order of their columns.
        adapter: the student.
        voice: the teacher, or None.
        feed: the data, for the planted truth.

    Raises:
        UserError: for an unknown feature, one of the teacher's without a teacher, or the planted truth where nothing is
            planted.
    """

    def __init__(self, names: Sequence[str], adapter: Adapter, voice: Voice | None, feed: Feed) -> None:
        self.names, self.adapter, self.feed = tuple(names), adapter, feed
        self.states = bool(STATES & set(self.names))
        self.vocabulary = voice.vocabulary_size if voice is not None else 0
        student = {"student_prompt": (adapter.hidden_size, self._student_prompt), "student_scalars": (2, self._student_scalars)}
        known: dict[str, tuple[int, Callable[[Seen], Tensor]]] = dict(student)
        if voice is not None:
            known |= {
                "teacher_prompt": (voice.width, self._teacher_prompt),
                "teacher_vision": (voice.width, self._teacher_vision),
                "teacher_scalars": (2, self._teacher_scalars),
                "scalars": (4, self._scalars),
                "blind": (1, self._blind),
            }
        for name in self.names:
            if name not in known:
                without = "" if voice is not None else " without a teacher signal"
                raise unknown(f"feature of a weighting{without}:", name, known)
        if "blind" in self.names and not feed.planted:
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
        return _normed(_known(_said(seen).prompt))

    def _teacher_vision(self, seen: Seen) -> Tensor:
        """Image-less samples show the zero vector, so that the gate learns one weight for all of them."""
        said = _said(seen)
        return torch.where(_known(said.seen)[:, None], _normed(_known(said.vision)), 0.0)

    def _student_scalars(self, seen: Seen) -> Tensor:
        if "student" in seen.scalars:
            return seen.scalars["student"]
        return scalars(seen.logits, seen.batch.sample, len(seen.batch.indices))

    def _teacher_scalars(self, seen: Seen) -> Tensor:
        if "teacher" in seen.scalars:
            return seen.scalars["teacher"]
        said = _said(seen)
        if isinstance(said.logits, Bins):  # the whole distribution's entropy is known without it
            top = sample_mean(said.logits.logits[:, :-1].amax(-1).exp(), seen.batch.sample, len(seen.batch.indices))
            return torch.stack([said.entropy.to(top.device) / math.log(self.vocabulary), top], 1)
        return scalars(said.logits[:], seen.batch.sample, len(seen.batch.indices))

    def _scalars(self, seen: Seen) -> Tensor:
        return torch.cat([self._teacher_scalars(seen), self._student_scalars(seen)], 1)

    def _blind(self, seen: Seen) -> Tensor:
        return torch.tensor([[float(self.feed.blind(k))] for k in seen.batch.indices])


def _said(seen: Seen) -> Said:
    if seen.said is None:
        raise ValueError("a feature of the teacher was asked for, and the teacher was not")
    return seen.said


def _known(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("a state of the teacher is read that it was not asked for")
    return value
