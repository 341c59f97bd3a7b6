"""MMBench, category by category."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.figures import _categories, style
from reports.measures import Estimates

TITLE = "MMBench by category"
CAPTION = (
    "Share of the questions of each category that count as right under the run's protocol (under the circular rule: right in "
    "every rotation of the options). "
    + _categories.CAPTION.format(reference="the student trained with cross-entropy alone (the teacher, where there is none)")
)
ORDER = 51


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    return _categories.draw(estimates, theme, "mmbench", 100.0, "right (%)")


def notes(estimates: Estimates) -> list[str]:
    """n, seeds, intervals."""
    return _categories.notes(estimates, "mmbench")
