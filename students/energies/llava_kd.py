"""LLaVA-KD: what both models say, what they would say at the image's tokens, and how those relate to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.base import UserError
from students import registry
from students.batch import TokenBatch, sample_mean, wide

from . import _base, _taps, fkl

TERMS = ("response", "vision", "relation")


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """RDist: 1 - cos(vec R^s, vec R^t) with R = Z Z^T over an image's tokens, image by image.

    Banned tokens (logits of -inf) take no part in R.

    Args:
        student: logits [G, n_v, V^s].
        teacher: logits [G, n_v, V^t]; V may differ, n_v may not.

    Returns:
        [G] in [0, 2], 0 at equality, the same at any scale of either model's logits.
    """
    # half the squared distance of unit vectors is 1 - cos, without its cancellation near a match
    return 0.5 * (_unit_relations(student) - _unit_relations(teacher.detach())).square().sum((1, 2))


def _unit_relations(logits: Tensor) -> Tensor:
    """Return Z Z^T / ||Z Z^T||, [G, n_v, n_v], at least float32: in half precision squared norms overflow (METHOD 2.3)."""
    z = wide(logits)
    z = _unit(z.masked_fill(z == -torch.inf, 0.0))
    return _unit(z @ z.transpose(1, 2))


def _unit(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=(1, 2), keepdim=True)
    return values / norm.clamp(min=torch.finfo(values.dtype).tiny)


class Energy(_base.Energy):
    """MDist on response tokens + MDist on vision tokens + RDist, each a mean within the sample; [0, inf) (METHOD 2.3).

    MDist is KL(p || q) at T = 1. RDist is taken per sample (the released code mixes the samples of a batch in one cosine).
    Both models' vision logits are cut to the vocabulary that the answer logits have. Text-only samples have the first term
    alone.

    Args:
        response, vision, relation: weights of the terms, >= 0. 1, 1, 1 is the released code; [M] the paper has .5 for
            RDist.
    """

    level = "sample"
    needs = frozenset({"vision_logits"})
    bins = False  # the answers' vocabulary is that of the vision logits

    def __init__(self, response: float = 1.0, vision: float = 1.0, relation: float = 1.0) -> None:
        super().__init__()
        given = {"response": response, "vision": vision, "relation": relation}
        self.weights = registry.per_channel("the weights of llava_kd", given, TERMS)
        self.divergence = fkl.Energy()

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [B]."""
        terms = self.terms(batch)
        return torch.stack([self.weights[name] * terms[name] for name in TERMS]).sum(0)

    def terms(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Return the three terms [B], unweighted; 0 where a sample has no image."""
        found = _taps.tap("llava_kd", batch, "vision_logits")
        vocabulary = batch.student_logits.shape[-1]
        if min(found.student.shape[-1], found.teacher.shape[-1]) < vocabulary:
            raise UserError(
                f"energy 'llava_kd' got vision logits over {found.student.shape[-1]} (student) and {found.teacher.shape[-1]}"
                f" (teacher) tokens; allowed: at least the {vocabulary} of the answers' logits"
            )
        student, teacher = found.student[..., :vocabulary], found.teacher[..., :vocabulary]
        images, tokens = student.shape[:2]
        with torch.autocast(student.device.type, enabled=False):
            response = sample_mean(self.divergence(batch), batch.sample, len(found.group))
            logs = self.divergence.logs
            flat = student.reshape(-1, vocabulary)
            nothing = batch.labels.new_zeros(len(flat))
            spans = self.divergence(TokenBatch(flat, teacher.reshape(-1, vocabulary), nothing, nothing))
            self.logs = {name: count + self.divergence.logs[name] for name, count in logs.items()}
            if found.mask is not None:  # rows of zeros relate to nothing
                student, teacher = (z.masked_fill(~found.mask[..., None], 0.0) for z in (student, teacher))
            return {
                "response": response,
                "vision": _taps.of_samples(_taps.token_mean(spans.reshape(images, tokens), found.mask), found.group),
                "relation": _taps.of_samples(relation(student, teacher), found.group),
            }
