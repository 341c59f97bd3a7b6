"""The released code's instance level: e^-s(x) per sample, applied to batch means, CE included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.base import UserError

from . import _base, _gate
from .released_task import CLAMP

DEFAULT = "teacher_vision"


class Weighting(_base.Weighting):
    """mean_i sum_k e^{-s_ik} l_k + s_ik, s_i = MLP(h_i) clamped to [-5, 5] (mobilevlm/train/weighting.py at 656ce71).

    The losses l_k are batch scalars there, so total = sum_k (mean_i e^{-s_ik}) mean l_k + mean s: the student sees the
    batch-mean weight alone, which is what ``weights`` reports, and the result depends on the micro-batch (METHOD 2.6, row 3).
    The implied beta = e^-s has d = 2: twice the task form. Any loss >= 0 is accepted. The released trainer's learning rate is
    ``lr_multiple=10``. Where the mask leaves samples out, the mean weight is that of the samples that have the channel.

    Options:
        hidden: width of the gate.
        features: what it reads; the released code's is "teacher_vision" (detached, without the layer norm that all features
            have here).
        per_sample: weigh every sample's own loss by its own e^-s (METHOD's ``instance_true``, never released).
    """

    weighs_ce = True
    nonnegative = True

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        hidden: int = 128,
        features: str | Sequence[str] = DEFAULT,
        per_sample: bool = False,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        if not isinstance(per_sample, bool):
            raise UserError(f"per_sample is {per_sample!r}; allowed: true, false")
        self.needs = frozenset(_gate.chosen(features))
        self.per_sample = self.additive = per_sample
        self.gate = _gate.Gate(self.name, feature_dim, hidden, len(channels))

    @classmethod
    def feature_names(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the option ``features`` as a tuple."""
        return _gate.chosen(options.get("features", DEFAULT))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return e^-s, [B] each (the batch mean, repeated, unless ``per_sample``), and s."""
        s: Tensor = self.gate(inputs.features).clamp(-CLAMP, CLAMP)
        own = {c: (-s[:, k]).exp() for k, c in enumerate(self.channels)}
        weights = own if self.per_sample else {c: self._mean(w, inputs.mask.get(c)) for c, w in own.items()}
        return weights, {c: s[:, k] for k, c in enumerate(self.channels)}

    @staticmethod
    def _mean(weight: Tensor, there: Tensor | None) -> Tensor:
        """Mean over the samples that have the channel, [B] -> [B]."""
        if there is None:
            return weight.mean().expand_as(weight)
        return (torch.where(there, weight, 0.0).sum() / there.sum().clamp(min=1)).expand_as(weight)
