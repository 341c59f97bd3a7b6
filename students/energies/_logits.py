"""What the energies over raw logits share: bans, centring (METHOD 2.1). Nothing here carries a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._kl import LOG_FLOOR


@dataclass
class Logits:
    """Logits of both sides, finite unless they came as NaN or +inf.

    Attributes:
        teacher: [N, V], 0 where both sides ban the token.
        student: [N, V], likewise.
        out: [N, V] bool, tokens banned (-inf) by both: padding, which counts nowhere.
        fixed: [N, V] bool, tokens the student bans: they get no gradient.
        count: [N, 1] number of tokens that are not ``out``.
        floored: 0-d count of tokens that only one side bans; that side's logit is taken as its row's largest minus 1e4.
    """

    teacher: Tensor
    student: Tensor
    out: Tensor
    fixed: Tensor
    count: Tensor
    floored: Tensor


@torch.no_grad()
def finite(teacher: Tensor, student: Tensor) -> Logits:
    """Replace -inf logits [N, V] by what :class:`Logits` says."""
    bans = teacher == -torch.inf, student == -torch.inf
    out = bans[0] & bans[1]
    teacher, student = (
        torch.where(ban, z.amax(-1, keepdim=True) + LOG_FLOOR, z).masked_fill_(out, 0.0)
        for z, ban in zip((teacher, student), bans, strict=True)
    )
    return Logits(teacher, student, out, bans[1], (~out).sum(-1, keepdim=True), (bans[0] ^ bans[1]).sum())


@torch.no_grad()
def centred(logits: Logits) -> tuple[Tensor, Tensor]:
    """Subtract from each side the mean over its row's tokens, [N, V] each."""
    teacher, student = (
        (z - z.sum(-1, keepdim=True) / logits.count).masked_fill_(logits.out, 0.0) for z in (logits.teacher, logits.student)
    )
    return teacher, student
