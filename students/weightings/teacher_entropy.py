"""The teacher's certainty as a weight per sample: 1 - entropy / log V, nothing learned."""

from __future__ import annotations

from . import _base, _gate


class Weighting(_base.Weighting):
    """w_i = 1 - H(p_i) / log V for every channel but CE (METHOD 2.6); H is the mean over the sample's answer tokens.

    0 for a uniform teacher, 1 for a certain one. Weighs any loss.
    """

    reads = ("teacher_scalars",)

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return the same weights for every channel but CE, and no regulariser."""
        certainty = 1 - _gate.first_column(self.name, inputs.features)
        certainty = certainty.clamp(min=0)  # rounding makes a uniform teacher's entropy exceed log V by 1e-7
        return dict.fromkeys(self.trainable, certainty), {}
