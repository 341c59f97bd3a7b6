"""UW-O: half the reciprocal of each loss, the optimum of Kendall and Gal in closed form."""

from __future__ import annotations

from . import _base, _statistics


class Weighting(_statistics.StatisticWeighting):
    """w_k = 1 / (2 sg l_k), CE included (METHOD 2.6); l_k is the last step's mean. The gradient is 1/2 sum_k grad log l_k."""

    weighs_ce = True

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the weights, the same for each of the B samples, and no regulariser."""
        mean, _ = self.current(inputs)
        return inputs.spread(1 / (2 * mean.clamp(min=_statistics.FLOOR)), self.channels), {}
