"""The teacher's certainty as a weight per sample: 1 - entropy / log V, nothing learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _base, _gate

FEATURE = "teacher_scalars"


class Weighting(_base.Weighting):
    """w_i = 1 - H(p_i) / log V for every channel but CE (METHOD 2.6); H is the mean over the sample's answer tokens.

    0 for a uniform teacher, 1 for a certain one. Weighs any loss.
    """

    def __init__(self, channels: tuple[str, ...], feature_dim: int | None = None, d: float | Mapping[str, float] = 1.0) -> None:
        super().__init__(channels, feature_dim, d)
        self.needs = frozenset({FEATURE})

    @classmethod
    def feature_names(cls, options: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG003 - it has no choice
        """Return "teacher_scalars", whose first column is the entropy's share of log V."""
        return (FEATURE,)

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the same weights for every channel but CE, and no regulariser."""
        certainty = 1 - _gate.first_column(self.name, inputs.features)
        certainty = certainty.clamp(min=0)  # rounding makes a uniform teacher's entropy exceed log V by 1e-7
        return dict.fromkeys(self.trainable, certainty), {}
