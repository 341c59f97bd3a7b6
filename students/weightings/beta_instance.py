"""Beta-KD at instance level: a weight per sample and channel, from a small gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from . import _base, _gate

FEATURES = _gate.FEATURES
DEFAULT = "student_prompt"


class Weighting(_base.BetaWeighting):
    """beta_i = softplus(gate(h_i)), gate = Linear - ReLU - Linear over a representation h of the sample (METHOD 2.6).

    The last layer starts at weight 0 and the bias at which every beta is 1, so that training starts as ``fixed`` does.

    Options:
        hidden: width of the gate.
        features: which representation, or a list of them: "student_prompt" and "teacher_prompt" (the state at the end of the
            prompt), "teacher_vision" (mean of the teacher's projected vision tokens, the released code's choice),
            "teacher_scalars", "student_scalars" and "scalars" (mean entropy and top probability over the answer).
        weigh_ce: give CE a beta per sample too, with a d of its own, which the paper does not.
    """

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        hidden: int = 128,
        features: str | Sequence[str] = DEFAULT,
        weigh_ce: bool = False,
    ) -> None:
        super().__init__(channels, feature_dim, d, weigh_ce)
        self.needs = frozenset(_gate.chosen(features))
        self.gate = _gate.Gate(self.name, feature_dim, hidden, len(self.trainable))
        nn.init.zeros_(self.gate.last.weight)
        nn.init.constant_(self.gate.last.bias, _base.UNIT)

    @classmethod
    def feature_names(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the option ``features`` as a tuple."""
        return _gate.chosen(options.get("features", DEFAULT))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return a beta per sample from the features [B, F], and its penalty."""
        return self.penalise(self.gate(inputs.features))
