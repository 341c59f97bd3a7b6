"""Figure 3 of the paper: the energies over the probability simplex. A drawing of formulas, not of measurements."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from reports.figures import style
from reports.figures._energies import ENERGIES, Floats
from reports.frames import Irrelevant, family
from reports.measures import Estimates

TITLE = "Energies over the probability simplex"
#: The teacher of METHOD's golden values, over the tokens A, B, C.
TEACHER = (0.7, 0.2, 0.1)
#: Points along a side, and how close the drawing comes to the edges, where some energies are infinite.
SIDE, EDGE = 61, 0.01
_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
CAPTION = (
    "Figure 3 of the paper, from the formulas (NumPy, double precision; temperature 1 unless an energy sets its own). Each "
    f"triangle holds every student distribution q over three tokens A, B, C; the star is the teacher, p = {TEACHER}, where "
    "every energy is 0. Colour and contours: the energy as a share of the largest value that its triangle shows, which is "
    f"written above it; shares are {', '.join(f'{level:g}' for level in _LEVELS[1:-1])} at the contours. The drawing stops at "
    f"probabilities of {EDGE:g}, because several energies are infinite at the edge. Energies have no common scale, so "
    "compare shapes: where a triangle is flat, a student is hardly pulled. Bold names are energies of this run. js: b = 0.1; "
    "skew: α = 0.1; adaptive_kl: μ = 0.5; dkd: label A, α = 1, β = 0.5; taid: t = 0.4 and ctkd: T = 15.6, as a training starts."
)
ORDER = 6
_COLUMNS = 4
#: Of contours and of the star's edge, on either paper: the colours below them are the same.
_LINE = "#1b1f24"


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    own = _own(estimates)
    q, x, y = grid()
    lines = math.ceil((len(ENERGIES) + 1) / _COLUMNS)
    figure = style.canvas(1.85 * lines)
    figure.set_layout_engine("none")  # nothing here has ticks, so places need not be searched for
    places = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 1.0 - 0.36 / (1.85 * lines), "wspace": 0.08, "hspace": 0.38}
    panels = figure.subplots(lines, _COLUMNS, gridspec_kw=places).ravel()
    for axes, (name, (energy, unit)) in zip(panels, ENERGIES.items(), strict=False):
        values = energy(np.array(TEACHER), q)
        top = float(np.nanmax(values))
        axes.contourf(x, y, values / top, _LEVELS, cmap=colormaps["cividis"].reversed())
        axes.contour(x, y, values / top, _LEVELS[1:-1], colors=_LINE, linewidths=0.6)
        _frame(axes, theme)
        axes.set_title(name, weight="bold" if name in own else "normal", pad=16)
        axes.text(0.0, 1.015, f"0 to {top:.2g} {unit}".rstrip(), transform=axes.transAxes)
    _key(panels[len(ENERGIES)], theme)
    for axes in panels[len(ENERGIES) + 1 :]:
        axes.set_visible(False)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """Which energies of the run have no place in the triangle."""
    lost = sorted(_used(estimates) - set(ENERGIES))
    out = [f"Not drawn, because they compare more than one token's distribution: {', '.join(lost)}."] if lost else []
    return [*out, "No data, and so no n, no seeds and no intervals."]


def grid() -> tuple[Floats, Floats, Floats]:
    """Return student distributions and where they lie, NaN outside the triangle.

    Returns:
        q: [SIDE, SIDE, 3]; x, y: [SIDE, SIDE], the triangle's sides being 1 long.
    """
    step = np.linspace(EDGE, 1.0 - 2.0 * EDGE, SIDE)
    b, c = np.meshgrid(step, step)
    a = 1.0 - b - c
    q = np.where((a > EDGE - 1e-9)[..., None], np.stack([a, b, c], axis=-1), np.nan)
    return q, b + c / 2.0, c * math.sqrt(3.0) / 2.0


def _used(estimates: Estimates) -> set[str]:
    return {channel for student in estimates.run.manifest.students for channel in family(student)}


def _own(estimates: Estimates) -> set[str]:
    own = _used(estimates) & set(ENERGIES)
    if not own:
        raise Irrelevant("No student of this run distils with an energy over a token's distribution.")
    return own


def _frame(axes: Axes, theme: style.Theme) -> None:
    """The triangle, its corners, and the teacher."""
    tall = math.sqrt(3.0) / 2.0
    axes.add_patch(Polygon([(0, 0), (1, 0), (0.5, tall)], closed=True, fill=False, edgecolor=theme.muted, linewidth=1.0))
    for word, x, y, side in (("A", -0.03, 0.0, "right"), ("B", 1.03, 0.0, "left"), ("C", 0.58, tall - 0.05, "left")):
        axes.text(x, y, word, ha=side, va="center")
    _, b, c = TEACHER
    axes.plot([b + c / 2], [c * tall], "*", markersize=13, color="white", markeredgecolor=_LINE, markeredgewidth=1.0)
    axes.set(xlim=(-0.13, 1.13), ylim=(-0.04, tall + 0.03), aspect="equal")
    axes.set_axis_off()


def _key(axes: Axes, theme: style.Theme) -> None:
    """What colour, star and corners mean."""
    axes.set_axis_off()
    fill = colormaps["cividis"].reversed()
    for k in range(len(_LEVELS) - 1):
        middle = (_LEVELS[k] + _LEVELS[k + 1]) / 2
        axes.add_patch(
            Polygon([(k, 0), (k + 1, 0), (k + 1, 1), (k, 1)], facecolor=fill(middle), edgecolor=_LINE, linewidth=0.6)
        )
    for at, level in ((0, "0"), (len(_LEVELS) - 1, "1")):
        axes.text(at, -0.35, level, ha="center", va="top")
    axes.text((len(_LEVELS) - 1) / 2, 1.4, "share of largest", ha="center", va="bottom")
    axes.set(xlim=(-0.5, len(_LEVELS) - 0.5), ylim=(-6.5, 4.5))
    star = Line2D([], [], marker="*", markersize=13, color="white", markeredgecolor=theme.muted, linestyle="none")
    axes.legend([star], ["teacher"], loc="lower center", bbox_to_anchor=(0.5, 0.02))
