"""Does a per-sample weight trust the right samples?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import _facts, style
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
#: Inches of a row, of which the text has the upper half.
_ROW = 0.72


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    found = [t for t in trusts(estimates) if (t.weights["beta"] > 0).all()][:MOST]
    if not found:
        raise Missing("Every student whose weights differ between samples gives some of them the weight 0: no logarithm.")
    figure = style.canvas(0.95 + _ROW * len(found))
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    _panel(grid[0], found, "wrong", ("teacher right", "teacher wrong"), theme)
    _panel(grid[1], found, "noisy", ("clean label", "noisy label"), theme)
    for axes, title in zip(grid, ("Teacher error", "Label noise"), strict=True):
        axes.set_title(title)
        axes.set_xlabel("β (ratio to ce)")
        style.plain_log(axes, "x")
        style.stripe(axes, len(found), theme)
    grid[0].set_yticks([-k for k in range(len(found))], [_name(found, t) for t in found])
    grid[0].set_ylim(-len(found) + 0.5, 0.5)
    style.legend(figure, most=2)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """n, seeds; what is left out: weights of zero, which a logarithmic axis has no place for, and students beyond the room."""
    found = trusts(estimates)
    zero = [t.student for t in found if not (t.weights["beta"] > 0).all()]
    lost = [t.student for t in found if t.student not in zero][MOST:]
    n, wrong, noisy = (_facts.span(int(x) for x in counts) for counts in _counts(found))
    seeds = _facts.seeds_told(estimates.run.betas_of(t.student)["seed"].nunique() for t in found)
    out = [f"n = {n} training samples, {wrong} with a wrong teacher, {noisy} with a noisy label; {seeds}, averaged."]
    out += [f"Not drawn, because weights of 0 have no place on a logarithmic axis: {', '.join(zero)}."] if zero else []
    if complementary(estimates.run):
        out.append(
            "In this run labels are wrong only where the teacher is not blind, so the right panel speaks of blindness too."
        )
    return out + _facts.unroomy(lost)


def _counts(found: list[Trust]) -> tuple[list[int], list[int], list[int]]:
    """Samples, samples with a wrong teacher, and with a noisy label, of each student."""
    tables = [t.weights for t in found]
    return [len(w) for w in tables], [int(w["wrong"].sum()) for w in tables], [int(w["noisy"].sum()) for w in tables]


def _name(found: list[Trust], own: Trust) -> str:
    """A student's name, with the channel where it weighs several."""
    several = sum(t.student == own.student for t in found) > 1
    return style.wrapped(own.student) + (f"\n{own.channel}" if several else "")


def _panel(axes: Axes, found: list[Trust], flag: str, labels: tuple[str, str], theme: style.Theme) -> None:
    for k, trust in enumerate(found):
        result: Interval | None = getattr(trust, flag)
        mask = trust.weights[flag].to_numpy(dtype=bool)
        for own, shift, color, label in ((~mask, -0.04, theme.cycle[0], labels[0]), (mask, -0.28, theme.cycle[1], labels[1])):
            beta = trust.weights["beta"].to_numpy()[own]
            if not len(beta):
                continue
            q = np.quantile(beta, [0.1, 0.25, 0.5, 0.75, 0.9])
            y = -k + shift
            axes.plot([q[0], q[4]], [y, y], color=color, linewidth=1.4, solid_capstyle="butt")
            axes.plot([q[1], q[3]], [y, y], color=color, linewidth=6.0, solid_capstyle="butt", alpha=0.75)
            marker = "o" if label == labels[0] else "s"
            name = label if k == 0 else None
            axes.plot([q[2]], [y], marker, markersize=7, color=color, markeredgecolor=theme.paper, linestyle="none", label=name)
        text = "only one kind" if result is None else f"P = {result.value:.2f} [{result.low:.2f}, {result.high:.2f}]"
        axes.text(0.99, -k + 0.29, text, transform=axes.get_yaxis_transform(), ha="right", va="center")
