"""How the distillation weight moves during training."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import style
from reports.frames import Missing, Run, family, weighting
from reports.measures import Estimates
from reports.trust import varies

TITLE = "Evolution of the distillation weight β"
CAPTION = (
    "Weight of the distillation energy relative to cross-entropy, on a logarithmic scale. Task weighting learns one number: a "
    "line. Instance weighting gives one per sample: the line is the median over the samples of a step, the band spans their "
    "10th to 90th percentile. Thin lines mark the fixed weights. Steps are pooled into at most 40 bins, seeds are pooled."
)
ORDER = 20
BINS = 40


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    run = estimates.run
    frame = run.dynamics
    learned = [s for s in run.students if weighting(s) and not weighting(s).startswith("fixed") and s in set(frame["student"])]
    panels = list(dict.fromkeys((family(s), c) for s in learned for c in family(s)))
    if not panels:
        raise Missing("No student of this run learns its weighting.")
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = style.canvas(0.5 + 2.3 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, (members, channel) in zip(grid, panels, strict=False):
        for student in [s for s in run.students if family(s) == members and weighting(s)]:
            _line(axes, student, channel, frame, run, theme)
        axes.set_title("+".join(members) + (f", weight of {channel}" if len(members) > 1 else ""))
        style.steps(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[: len(panels)]:
        style.plain_log(axes)  # after everything is drawn, because ticks depend on the limits
    for axes in grid[::columns]:
        axes.set_ylabel("weight β (ratio to cross-entropy)")
    style.legend(figure)
    return figure


def _line(axes: Axes, student: str, channel: str, frame: pd.DataFrame, run: Run, theme: style.Theme) -> None:
    look = style.look(student, run.students, theme)
    rows = frame[(frame["student"] == student) & (frame["channel"] == channel)]
    if weighting(student).startswith("fixed"):
        if len(rows):
            axes.plot(
                rows["step"], rows["weight"], color=look.color, linewidth=0.8, linestyle=look.dash, label=weighting(student)
            )
        return
    samples = _samples(run, student, channel)
    if samples is None:
        means = rows.groupby("step")["weight"].mean()
        axes.plot(means.index, means, color=look.color, linestyle=look.dash, label=weighting(student))
        return
    edges = np.linspace(samples["step"].min(), samples["step"].max() + 1, BINS + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    bins = np.digitize(samples["step"], edges) - 1
    low, mid, high = (samples.groupby(bins)["beta"].quantile(q) for q in (0.1, 0.5, 0.9))
    where = middle[mid.index.to_numpy()]
    axes.plot(where, mid, color=look.color, label=f"{weighting(student)} (median, 10–90 %)")
    axes.fill_between(where, low, high, color=look.color, alpha=0.2, linewidth=0)


def _samples(run: Run, student: str, channel: str) -> pd.DataFrame | None:
    """Per-sample weights, or None where the student has none or all samples share one."""
    try:
        betas = run.betas
    except Missing:
        return None
    rows = betas[(betas["student"] == student) & (betas["channel"] == channel)]
    return rows if len(rows) and varies(rows) else None
