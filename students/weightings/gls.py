"""GLS: the geometric mean of the losses."""

from __future__ import annotations

import torch

from . import _base, _statistics


class Weighting(_statistics.StatisticWeighting):
    """(prod_k l_k)^(1/K), CE included (METHOD 2.6), as weights w_k = GLS / (K l_k): its gradient, and its value too.

    l_k is the last step's mean, so that value and gradient are exact where the losses have not moved since.
    """

    weighs_ce = True

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the weights, the same for each of the B samples, and no regulariser."""
        mean, known = self.current(inputs)
        logs = mean.clamp(min=_statistics.FLOOR).log()
        size = known.sum()
        geometric = torch.where(known, logs, 0.0).sum() / size
        return inputs.spread((geometric - logs).exp() / size, self.channels), {}
