"""What distilling buys: each student minus the one that is trained on the labels alone."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.figures import _forest, style
from reports.measures import Estimates

TITLE = "Differences to plain training"
CAPTION = "Each student minus the student trained with cross-entropy alone. " + _forest.CAPTION
ORDER = 3


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    return _forest.draw(estimates, theme, _pairs(estimates))


def notes(estimates: Estimates) -> list[str]:
    """Whom students are compared with, n, seeds, intervals."""
    return _forest.notes(estimates, _pairs(estimates))


def _pairs(estimates: Estimates) -> list[_forest.Pair]:
    return estimates.once("forest ce", lambda: _forest.pairs(estimates, ["ce"]))
