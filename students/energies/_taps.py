"""What the energies over features share: checked access to taps, learned projections, and values per sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.base import UserError
from students.batch import Tap, TokenBatch, wide


def tap(energy: str, batch: TokenBatch, name: str) -> Tap:
    """Return a tap of the batch.

    Raises:
        UserError: naming energy, tap and shapes, when it is missing or the models differ in groups or vision tokens.
    """
    if batch.taps is None or name not in batch.taps:
        there = ", ".join(sorted(batch.taps)) if batch.taps else "none"
        raise UserError(f"energy {energy!r} needs the tap {name!r}; taps given: {there}")
    found = batch.taps[name]
    if found.student.ndim != found.teacher.ndim or found.student.shape[:-1] != found.teacher.shape[:-1]:
        raise UserError(
            f"energy {energy!r} compares the tap {name!r} one to one; allowed: equal sizes but for the last, given: student"
            f" {list(found.student.shape)}, teacher {list(found.teacher.shape)}"
        )
    return found


def projection(energy: str, widths: Mapping[str, tuple[int, int]], name: str) -> nn.Linear:
    """Make the map from a tap's teacher width to its student width: no bias, float32, trained with the student.

    It starts as the identity where widths are equal, so that equal features cost exactly nothing, and as a random
    orthogonal map elsewhere.

    Raises:
        UserError: when ``widths`` lacks the tap.
    """
    if name not in widths:
        raise UserError(f"energy {energy!r} needs the widths of the tap {name!r}; given: {', '.join(sorted(widths)) or 'none'}")
    student, teacher = widths[name]
    made = nn.Linear(teacher, student, bias=False)
    with torch.no_grad():
        (nn.init.eye_ if student == teacher else nn.init.orthogonal_)(made.weight)
    return made


def squared_gap(project: nn.Linear, found: Tap) -> Tensor:
    """Return (W f^t - f^s)^2, of the student's shape, at least float32 (METHOD 2.3: 255^2 overflows half precision)."""
    mapped: Tensor = project(wide(found.teacher.detach()))
    return (mapped - wide(found.student)).square()


def of_samples(values: Tensor, group: Tensor) -> Tensor:
    """Hand values [G, ...] of groups to their samples: [B, ...], a zero within the graph for those of no group (-1)."""
    nobody = values.new_zeros(1, *values.shape[1:])
    return torch.cat([values, nobody])[group]  # -1 reads the last


def token_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens that a group has: [G, n] with [G, n] bool, or None for all -> [G]."""
    if mask is None:
        return values.mean(1)
    there = mask.to(values.dtype)
    return (values * there).sum(1) / there.sum(1).clamp(min=1)
