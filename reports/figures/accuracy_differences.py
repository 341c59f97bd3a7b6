"""What learning a weight buys: each student minus the one that distils with the same energy under a given weight."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.comparisons import BASELINES
from reports.figures import _forest, style
from reports.measures import Estimates

TITLE = "Differences to the given weight"
CAPTION = (
    "Each student minus the student that distils with the same energy under a weight that is given before training (@fixed, or "
    "@manual where there is none). " + _forest.CAPTION
)
ORDER = 2


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    return _forest.draw(estimates, theme, _pairs(estimates))


def notes(estimates: Estimates) -> list[str]:
    """Whom students are compared with, n, seeds, intervals."""
    return _forest.notes(estimates, _pairs(estimates))


def _pairs(estimates: Estimates) -> list[_forest.Pair]:
    return estimates.once("forest given", lambda: _forest.pairs(estimates, [f"@{word}" for word in BASELINES]))
