"""The gate of the instance-level weightings, and what it may look at."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.base import UserError, unknown
from students.registry import count

#: Representations of a sample that a gate may read (students/features.py makes them); the planted truth is none of them.
FEATURES = ("student_prompt", "teacher_prompt", "teacher_vision", "teacher_scalars", "student_scalars", "scalars")


def chosen(features: Any) -> tuple[str, ...]:
    """Return the names of the option ``features``: one name, or a list of names, each once.

    Raises:
        UserError: (a ``KeyError`` too for names) naming what was given and what is allowed.
    """
    names = (features,) if isinstance(features, str) else features
    if not isinstance(names, list | tuple) or not names or len(set(map(str, names))) != len(names):
        raise UserError(f"features is {features!r}; allowed: one or several of {', '.join(FEATURES)}, each once")
    for name in names:
        if name not in FEATURES:
            raise unknown("feature of a gate:", str(name), FEATURES)
    return tuple(names)


class Gate(nn.Module):
    """Linear - ReLU - Linear over the features [B, F], in float32 (float64 after ``.double()``)."""

    def __init__(self, owner: str, feature_dim: int | None, hidden: int, outputs: int) -> None:
        super().__init__()
        if feature_dim is None or feature_dim < 1:
            raise UserError(f"weighting {owner!r} needs feature_dim, the width of its features; got {feature_dim!r}")
        self.owner, self.width = owner, feature_dim
        self.first = nn.Linear(feature_dim, count("hidden", hidden))
        self.last = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor | None) -> Tensor:
        """Return [B, outputs].

        Raises:
            ValueError: without features, or with others than this was built for.
        """
        if features is None:
            raise ValueError(f"weighting {self.owner!r} was called without features [B, {self.width}]")
        if features.shape[1] != self.width:
            raise ValueError(f"weighting {self.owner!r} was built for features [B, {self.width}], got {tuple(features.shape)}")
        raw: Tensor = self.last(self.first(features.to(self.first.weight.dtype)).relu())
        return raw


def first_column(owner: str, features: Tensor | None) -> Tensor:
    """Return the first column [B] of the features that ``owner`` reads.

    Raises:
        ValueError: when there are none.
    """
    if features is None or not features.shape[1]:
        raise ValueError(f"weighting {owner!r} was called without features [B, F]")
    return features[:, 0]
