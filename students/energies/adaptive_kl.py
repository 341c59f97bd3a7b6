"""Adaptive mixture of forward and reverse KL."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _base, _kl


class Energy(_base.LogitsEnergy):
    """AKL: T^2 (h FKL + (1 - h) RKL), h = sum over the head of |p - q| / sum of |p - q| (arXiv 2404.02657, METHOD 2.1).

    The head is the longest prefix of the teacher's tokens, in falling order, whose mass (the last one included) is at most
    ``mu``, and at least the top token. h is detached, as in the official code; where p = q it is 0 / 0, taken as .5, and the
    value is 0 all the same. TAID and Beta-KD sort rising and do not gather the student, so that their head falls on other
    tokens. Tokens of equal teacher probability at the head's edge are taken in by equal shares, so that their order does not
    matter. In nats, [0, inf); banned tokens as in ``fkl`` and ``rkl``. Keeps two [N, V] tensors for the backward pass; makes
    eight more on the way, one of int64 in the sort, whose cost is O(V log V) per token.

    Args:
        mu: mass of the head, in (0, 1).
        temperature: T > 0.
    """

    bins = False  # the head is made of single tokens

    def __init__(self, mu: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        self.mu = _base.within("mu", mu, 0, 1, "()")

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[N, V] log-probabilities of teacher and student -> [N]."""
        ahead, back = _kl.kl(teacher, student), _kl.kl(student, teacher)
        self.logs = {"floored": ahead.floored + back.floored}
        head = self.head(ahead.a, ahead.b)
        slope = (ahead.b - ahead.a).mul_(head[:, None]).add_((back.a * back.gap).mul_(1 - head[:, None]))
        return _kl.attach(head * ahead.values + (1 - head) * back.values, (student, slope))

    @torch.no_grad()
    def head(self, p: Tensor, q: Tensor) -> Tensor:
        """Return h [N] from probabilities [N, V] of teacher and student."""
        ranked = p.sort(-1, descending=True).values
        size = (ranked.cumsum(-1) <= self.mu).sum(-1, keepdim=True).clamp(min=1)
        edge = ranked.gather(-1, size - 1)
        above, level = p > edge, p == edge
        gap = (p - q).abs()
        share = (size - above.sum(-1, keepdim=True)) / level.sum(-1, keepdim=True)
        total = gap.sum(-1)
        within = (gap * above).sum(-1) + share[:, 0] * (gap * level).sum(-1)
        return torch.where(total == 0, 0.5, within / total)
