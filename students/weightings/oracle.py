"""The planted truth as a weighting: labels where the teacher is blind, the teacher where it sees. An upper bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _base, _gate

FEATURE = "blind"


class Weighting(_base.Weighting):
    """CE weighs 1 on samples whose teacher is blind and 0 elsewhere, every other channel the reverse.

    Only meaningful on planted data, whose blind samples are recorded (``--preset planted``). Weighs any loss.
    """

    weighs_ce = True

    def __init__(self, channels: tuple[str, ...], feature_dim: int | None = None, d: float | Mapping[str, float] = 1.0) -> None:
        super().__init__(channels, feature_dim, d)
        self.needs = frozenset({FEATURE})

    @classmethod
    def feature_names(cls, options: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG003 - it has no choice
        """Return "blind"."""
        return (FEATURE,)

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return weights of 0 and 1, and no regulariser."""
        blind = _gate.first_column(self.name, inputs.features)
        return {c: blind if c == "ce" else 1 - blind for c in self.channels}, {}
