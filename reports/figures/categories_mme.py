"""MME, category by category."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.figures import _categories, style
from reports.measures import Estimates

TITLE = "MME by category"
CAPTION = (
    "Points of each category, 0 to 200: accuracy plus accuracy+ (both questions of an image right), in percent. "
    + _categories.CAPTION.format(reference="the student trained with cross-entropy alone (the teacher, where there is none)")
)
ORDER = 50


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    return _categories.draw(estimates, theme, "mme", 200.0, "points")


def notes(estimates: Estimates) -> list[str]:
    """n, seeds, intervals."""
    return _categories.notes(estimates, "mme")
