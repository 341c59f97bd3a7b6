"""UW-SO: a softmax over the reciprocals of the losses."""

from __future__ import annotations

from collections.abc import Mapping

from students.registry import positive

from . import _base, _statistics


class Weighting(_statistics.StatisticWeighting):
    """w = softmax((1 / sg l) / T), CE included (METHOD 2.6); l_k is the last step's mean. The weights sum to 1.

    Options:
        temperature: T; weights become equal as it grows.
    """

    weighs_ce = True

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(channels, feature_dim, d)
        self.temperature = positive("temperature", temperature)

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the weights, the same for each of the B samples, and no regulariser."""
        mean, known = self.current(inputs)
        logits = 1 / mean.clamp(min=_statistics.FLOOR) / self.temperature
        return inputs.spread(logits.masked_fill(~known, -float("inf")).softmax(0), self.channels), {}
