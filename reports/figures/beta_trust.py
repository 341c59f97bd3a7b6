"""Does a per-sample weight trust the right samples?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import style
from reports.frames import Missing
from reports.measures import Estimates
from reports.statistics import Interval
from reports.trust import Trust, complementary, trusts

TITLE = "β against teacher error and label noise"
CAPTION = (
    "Per-sample weight β in the last quarter of training, geometric mean per sample. Dot: median, thick bar: middle half, thin "
    "bar: 10th to 90th percentile. Left: samples whose teacher is right, and wrong. Right: samples with a clean, and with a "
    "noisy label. P is the probability that a sample of the lower kind has the smaller weight than one of the upper kind, with "
    "its 95 % interval over training samples: 0.5 means that β knows nothing of it. Weighting against noisy labels would mean "
    "a larger β on them, P below 0.5; distrust of a wrong teacher means P above 0.5."
)
ORDER = 30
#: More students than this would be too small to read.
MOST = 14


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    found = [t for t in trusts(estimates) if (t.weights["beta"] > 0).all()][:MOST]
    if not found:
        raise Missing("Every student whose weights differ between samples gives some of them the weight 0: no logarithm.")
    figure = style.canvas(0.75 + (0.85 if len(found) <= 4 else 0.6) * len(found))
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    _panel(grid[0], found, "wrong", ("teacher right", "teacher wrong"), theme)
    _panel(grid[1], found, "noisy", ("clean label", "noisy label"), theme)
    grid[0].set_title("Teacher error")
    grid[1].set_title("Label noise")
    for axes in grid:
        axes.set_xlabel("weight β (ratio to cross-entropy)")
        axes.grid(visible=False, axis="y")
        style.plain_log(axes, "x")
    grid[0].set_yticks(
        [-k for k in range(len(found))], [f"{t.student}\n{t.channel}" if _many(found, t) else t.student for t in found]
    )
    grid[0].tick_params(axis="y", length=0)
    grid[1].tick_params(axis="y", length=0)
    grid[0].set_ylim(-len(found) + 0.4, 0.75 if len(found) <= 4 else 1.05)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """What is left out: weights of zero, which a logarithmic axis has no place for, and students beyond the room there is."""
    found = trusts(estimates)
    zero = [t.student for t in found if not (t.weights["beta"] > 0).all()]
    lost = [t.student for t in found if t.student not in zero][MOST:]
    out = [f"Not drawn, because weights of 0 have no place on a logarithmic axis: {', '.join(zero)}."] if zero else []
    if complementary(estimates.run):
        out.append(
            "In this run labels are wrong only where the teacher is not blind, so the right panel speaks of blindness too."
        )
    return out + ([f"Not drawn, for want of room: {', '.join(lost)}."] if lost else [])


def _many(found: list[Trust], own: Trust) -> bool:
    return sum(t.student == own.student for t in found) > 1


def _panel(axes: Axes, found: list[Trust], flag: str, labels: tuple[str, str], theme: style.Theme) -> None:
    for k, trust in enumerate(found):
        result: Interval | None = getattr(trust, flag)
        mask = trust.weights[flag].to_numpy(dtype=bool)
        for own, shift, color, label in ((~mask, 0.13, theme.cycle[0], labels[0]), (mask, -0.13, theme.cycle[1], labels[1])):
            beta = trust.weights["beta"].to_numpy()[own]
            if not len(beta):
                continue
            q = np.quantile(beta, [0.1, 0.25, 0.5, 0.75, 0.9])
            y = -k + shift
            axes.plot([q[0], q[4]], [y, y], color=color, linewidth=1.0, solid_capstyle="butt")
            axes.plot([q[1], q[3]], [y, y], color=color, linewidth=4.0, solid_capstyle="butt", alpha=0.75)
            marker = "o" if shift > 0 else "s"
            name = f"{label}" if k == 0 else None
            axes.plot([q[2]], [y], marker, markersize=5, color=color, markeredgecolor=theme.paper, linestyle="none", label=name)
        text = (
            "only one kind in this run" if result is None else f"P = {result.value:.2f} [{result.low:.2f}, {result.high:.2f}]"
        )
        place = axes.get_yaxis_transform()
        axes.text(0.99, -k + 0.36, text, transform=place, ha="right", va="center", fontsize=7.5, color=theme.ink)
    high = 1.02 if len(found) <= 4 else 1.0
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, high), ncols=2, handlelength=1.0, columnspacing=1.2, borderaxespad=0.0)
