"""Kendall and Gal's homoscedastic uncertainty: a learned variance per channel, CE included."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from harness.base import UserError
from students.batch import wide
from students.registry import is_number, word

from . import _base

FORMS = ("regression", "classification")


class Weighting(_base.Weighting):
    """Learned s_k = log sigma_k^2 per channel (Kendall, Gal and Cipolla 2018; METHOD 2.6).

    Regression form: sum_k 1/2 e^{-s_k} l_k + 1/2 s_k, whose optimum s* = log l gives weight 1 / (2 l): that of ``beta_task``
    with CE included and d = 1. Classification form: e^{-s_k} l_k + 1/2 s_k, with s* = log 2l and the same weight there.
    Meant for negative log-likelihoods, so a loss need not be 0 at a match, only >= 0. No clamp.

    Options:
        form: "regression" or "classification".
        init: where every s starts; -0.5 as in LibMTL.
    """

    weighs_ce = True
    nonnegative = True
    rate = 10.0

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        form: str = "regression",
        init: float = -0.5,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        self.factor = {"regression": 0.5, "classification": 1.0}[word("form", form, FORMS)]
        if not is_number(init):
            raise UserError(f"init is {init!r}; allowed: a finite number")
        self.s = nn.Parameter(torch.full((len(channels),), float(init)))

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the weights and 1/2 s, the same for each of the B samples."""
        s = wide(self.s)
        return inputs.spread(self.factor * (-s).exp(), self.channels), inputs.spread(0.5 * s, self.channels)
