"""Align-KD: text, first-layer attention from text to image, and vision tokens, those the teacher looks at once more."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.base import UserError
from students import registry
from students.batch import Tap, TokenBatch, sample_mean, wide

from . import _base, _taps, fkl

TERMS = ("text", "attention", "focused", "vision")


def focus(attention: Tensor, mask: Tensor | None, k: int, keys: Tensor | None = None) -> Tensor:
    """Number the k vision tokens that a sample's text looks at most.

    The keys are vision tokens alone, so no offset for BOS or the prompt is needed (the released code subtracts 1 or 2).

    Args:
        attention: [B, Q, n_v, heads], the teacher's.
        mask: [B, Q] bool, the queries that exist, or None for all.
        k: how many.
        keys: [B, n_v] bool, the vision tokens that exist, or None for all.

    Returns:
        [B, k] int64 in 0 .. n_v-1, by attention summed over queries and averaged over heads, largest first.

    Raises:
        UserError: when there are fewer than k vision tokens.
    """
    if k > attention.shape[2]:
        raise UserError(
            f"energy 'align_kd' got k = {k}, and an image has {attention.shape[2]} vision tokens; allowed: 1 to that"
        )
    weights = wide(attention.detach()).mean(-1)
    if mask is not None:
        weights = weights.masked_fill(~mask[..., None], 0.0)
    summed = weights.sum(1)
    return (summed if keys is None else summed.masked_fill(~keys, -1.0)).topk(k, -1).indices


class Energy(_base.Energy):
    """Sum of Align-KD's four terms, each a mean within the sample; [0, inf) (METHOD 2.3).

    1. text: KL(p || q) of the supervised tokens (the released code takes the soft cross-entropy of all positions, in half
       precision);
    2. attention: (A_W a^t - a^s)^2 over text queries, vision keys (of all images that the sample shows) and heads of the
       first decoder layer, A_W a learned map of teacher heads to student heads;
    3. focused: (W f^t - f^s)^2 over the k vision tokens that the teacher's first layer attends most;
    4. vision: the same over all vision tokens.

    W and A_W are trained, which the released code forgets; in Beta-KD's release terms 2 and 3 never run. Text-only samples
    have the first term alone.

    Args:
        widths: (student, teacher) widths of the taps "vision" and "attention".
        k: vision tokens of the third term; more than an image has is an error.
        text, attention, focused, vision: weights of the terms, >= 0.
    """

    level = "sample"
    needs = frozenset({"vision", "attention"})

    def __init__(
        self,
        widths: Mapping[str, tuple[int, int]],
        k: int = 16,
        text: float = 1.0,
        attention: float = 1.0,
        focused: float = 1.0,
        vision: float = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UserError(f"k is {k!r}; allowed: a whole number of vision tokens, 1 or more")
        self.k = k
        given = {"text": text, "attention": attention, "focused": focused, "vision": vision}
        self.weights = registry.per_channel("the weights of align_kd", given, TERMS)
        self.project = _taps.projection("align_kd", widths, "vision")
        self.heads = _taps.projection("align_kd", widths, "attention")
        self.divergence = fkl.Energy()

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return [B]."""
        terms = self.terms(batch)
        return torch.stack([self.weights[name] * terms[name] for name in TERMS]).sum(0)

    def terms(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Return the four terms [B], unweighted; 0 where a sample has no image."""
        attention, vision = _taps.tap("align_kd", batch, "attention"), _taps.tap("align_kd", batch, "vision")
        keys, tokens = attention.student.shape[2], vision.student.shape[1]
        if keys != tokens:
            raise UserError(f"energy 'align_kd' got {tokens} vision tokens and attention to {keys}")
        count = len(vision.group)
        with torch.autocast(vision.student.device.type, enabled=False):
            text = sample_mean(self.divergence(batch), batch.sample, count)
            self.logs = dict(self.divergence.logs)
            gaps = _taps.of_samples(_taps.squared_gap(self.project, vision).mean(-1), vision.group)  # [B, n_v]
            there = None if vision.mask is None else _taps.of_samples(vision.mask, vision.group)  # [B, n_v]
            chosen = _taps.of_samples(focus(attention.teacher, attention.mask, self.k, there), attention.group)
            return {
                "text": text,
                "attention": _taps.of_samples(self._attention(attention, there), attention.group),
                "focused": gaps.gather(1, chosen).mean(1),
                "vision": _taps.token_mean(gaps, there),
            }

    def _attention(self, found: Tap, keys: Tensor | None) -> Tensor:
        """Mean over a sample's queries, the vision keys (those in ``keys`` [B, n_v]) and the student's heads: [B]."""
        gaps = _taps.squared_gap(self.heads, found)
        if keys is None:
            return _taps.token_mean(gaps.mean((2, 3)), found.mask)
        there = keys[:, None].to(gaps.dtype)
        return _taps.token_mean((gaps.mean(3) * there).sum(2) / there.sum(2).clamp(min=1), found.mask)
