"""Beta-KD at instance level: a weight per sample and channel, from a small gate."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from harness.base import UserError

from . import _base

#: Representations of a sample that the distiller can feed to the gate.
FEATURES = ("student_prompt", "teacher_prompt")


class Weighting(_base.BetaWeighting):
    """beta_i = softplus(gate(h_i)), gate = Linear - ReLU - Linear over a representation h of the sample (METHOD 2.6).

    The last layer starts at weight 0 and the bias at which every beta is 1, so that training starts as ``fixed`` does.

    Options:
        hidden: width of the gate.
        features: which representation: "student_prompt" (the student's state at the end of the prompt) or "teacher_prompt".
    """

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        hidden: int = 128,
        features: str = "student_prompt",
    ) -> None:
        super().__init__(channels, feature_dim, d)
        if feature_dim is None or feature_dim < 1:
            raise UserError(f"weighting 'beta_instance' needs feature_dim, the width of its features; got {feature_dim!r}")
        if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 1:
            raise UserError(f"hidden is {hidden!r}; allowed: a whole number >= 1")
        if features not in FEATURES:
            raise UserError(f"features is {features!r}; allowed: {', '.join(FEATURES)}")
        self.needs = frozenset({features})
        last = nn.Linear(hidden, len(self.trainable))
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, _base.UNIT)
        self.gate = nn.Sequential(nn.Linear(feature_dim, hidden), nn.ReLU(), last)

    def betas(self, inputs: _base.Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return a beta per sample from the features [B, F], and its penalty."""
        if inputs.features is None:
            raise ValueError("weighting 'beta_instance' was called without features [B, F]")
        raw: Tensor = self.gate(inputs.features)
        return self.penalise(raw)
