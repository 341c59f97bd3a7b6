"""The Kullback-Leibler numerics that a dozen energies share: no cancellation, no underflow, no [N, V] graph (METHOD 2.0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import threshold

#: Smallest log-probability an energy works with, so that a token the student bans costs much but not infinitely much.
LOG_FLOOR = -1e4
#: Stands for a logit of -inf in products with t or 1 / T, where it would give NaN; its probability is 0 all the same.
BANNED = -1e30


@dataclass
class Divergence:
    """KL(a || b) and what it was made of; nothing here carries a gradient.

    Attributes:
        values: [N], never below 0, exactly 0 where a and b are equal.
        a: [N, V] probabilities of the left side; those under the smallest normal number are 0.
        b: [N, V] probabilities of the right side, likewise.
        gap: [N, V] log(a / b), the right side floored at LOG_FLOOR; where a is 0, some finite number.
        floored: 0-d count of entries where the floor mattered.
    """

    values: Tensor
    a: Tensor
    b: Tensor
    gap: Tensor
    floored: Tensor


@torch.no_grad()
def kl(log_a: Tensor, log_b: Tensor) -> Divergence:
    """Compute sum_k a log(a / b) from log-probabilities [N, V]; -inf entries are allowed on either or both sides.

    Summed as a log(a / b) - a + b, which is the same for normalised vectors, but has no negative term: near a match the
    textbook form is a difference of numbers of order 1, and comes out negative in float32.
    """
    # subnormal numbers, whose products round to nothing, count as 0; a NaN stays one, which `where(a > 0, ...)` would hide
    a, b = (threshold(log.exp(), torch.finfo(log.dtype).tiny, 0.0, inplace=True) for log in (log_a, log_b))
    absent = a == 0
    floored = ((log_b < LOG_FLOOR) > absent).sum()
    # in place throughout: at a vocabulary of 32000, new memory costs more time than the arithmetic
    gap = log_b.clamp(min=LOG_FLOOR).neg_().add_(log_a).masked_fill_(absent, -1.0)  # any number < -.5: a * gap + b - a = b
    near = gap.clamp(min=-0.5)  # e^-gap would overflow below, and nothing cancels there
    close = near.neg().expm1_().add_(near).clamp_(min=0.0).mul_(a)  # the clamp is for devices whose expm1 is an ulp low
    far = torch.mul(a, gap, out=near).add_(b).sub_(a)
    return Divergence(torch.where(gap < -0.5, far, close).sum(-1), a, b, gap, floored)


@torch.no_grad()
def log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Return log(share p + (1 - share) q), [N, V], by logarithms throughout: exactly log p where p = q, -inf where both are.

    The released code's sum of probabilities gives NaN as soon as a gap of logits exceeds about 104 (METHOD 2.0, rule 2).
    """
    top = torch.maximum(log_p, log_q)
    gap = (log_p - log_q).masked_fill_(top == -torch.inf, 0.0)
    other = torch.where(gap > 0, 1 - share, share).to(gap.dtype)  # the share of the smaller one
    return gap.abs_().neg_().expm1_().mul_(other).log1p_().add_(top)


class _Attach(torch.autograd.Function):
    """Values [N] that were computed without a graph, and their slopes by inputs [N, V]: what is kept is one tensor each."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *pairs: Tensor) -> Tensor:
        ctx.save_for_backward(*pairs[1::2])
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out: list[Tensor | None] = [None]
        for number, slope in enumerate(ctx.saved_tensors):
            out += [grad[:, None] * slope if ctx.needs_input_grad[1 + 2 * number] else None, None]
        return tuple(out)


def attach(values: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Give ``values`` [N] a gradient.

    Args:
        values: [N], without a graph; each depends on its own row of the inputs only.
        pairs: (input [N, V], slope [N, V]) with slope = d values / d input, for each input that needs a gradient.

    Returns:
        [N], differentiable once.
    """
    flat = [tensor for pair in pairs for tensor in pair]
    out: Tensor = _Attach.apply(values, *flat)  # type: ignore[no-untyped-call]
    return out
