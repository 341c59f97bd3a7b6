"""The planted truth as a weighting: labels where the teacher is blind, the teacher where it sees. An upper bound."""

from __future__ import annotations

from . import _base, _gate


class Weighting(_base.Weighting):
    """CE weighs 1 on samples whose teacher is blind and 0 elsewhere, every other channel the reverse.

    Only meaningful on planted data, whose blind samples are recorded (``--preset planted``). Weighs any loss.
    """

    weighs_ce = True
    reads = ("blind",)

    def betas(self, inputs: _base.Inputs) -> _base.Betas:
        """Return weights of 0 and 1, and no regulariser."""
        blind = _gate.first_column(self.name, inputs.features)
        return {c: blind if c == "ce" else 1 - blind for c in self.channels}, {}
