"""Training losses: cross-entropy and the distillation energy, one column per energy."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import style
from reports.frames import Missing, Run, family
from reports.measures import Estimates

TITLE = "Loss trajectories"
CAPTION = (
    "Training losses before weighting, mean over the samples of a step (each the mean over its answer tokens), smoothed by a "
    "running mean over 5 % of the steps. Top: cross-entropy against the training labels (noisy where the run injects noise), "
    "with the student trained on it alone in every panel. Below: the distillation energy, on a logarithmic scale. Bands span "
    "the seeds where there are several. A lower training loss is no claim about the test."
)
ORDER = 10


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    run = estimates.run
    frame = run.dynamics
    students = [s for s in run.students if s in set(frame["student"])]
    families = list(dict.fromkeys(family(s) for s in students if family(s)))
    if not families:
        families = [()]
    depth = 1 + max(len(f) for f in families)
    figure = style.canvas(0.55 + 1.75 * depth)
    grid = figure.subplots(depth, len(families), squeeze=False, sharex=True)
    for column, members in enumerate(families):
        channels = ["ce", *members]
        for row in range(depth):
            axes = grid[row][column]
            if row >= len(channels):
                axes.set_visible(False)
                continue
            shown = [s for s in students if family(s) == members or (row == 0 and not family(s))]
            _panel(axes, frame, channels[row], shown, run, theme)
            axes.set_title("ce" if row == 0 and not members else ("+".join(members) if row == 0 else ""))
            name = "cross-entropy" if channels[row] == "ce" else channels[row]
            axes.set_ylabel(f"{name} (nats/token)" if channels[row] in ("ce", "fkl") else f"{name} (per token)")
        style.steps(grid[min(depth, len(channels)) - 1][column])
    style.legend(figure)
    return figure


def _panel(axes: Axes, frame: pd.DataFrame, channel: str, students: list[str], run: Run, theme: style.Theme) -> None:
    drawn = False
    for student in students:
        rows = frame[(frame["student"] == student) & (frame["channel"] == channel)]
        if rows.empty:
            continue
        drawn = True
        table = rows.pivot_table(index="step", columns="seed", values="loss")
        smooth = table.rolling(max(1, len(table) // 20), min_periods=1).mean()
        look = style.look(student, run.students, theme)
        label = student.partition("@")[2] or f"{student} alone"
        axes.plot(smooth.index, smooth.mean(axis=1), color=look.color, linestyle=look.dash, label=label)
        if smooth.shape[1] > 1:
            axes.fill_between(smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=look.color, alpha=0.15, linewidth=0)
    if not drawn:
        raise Missing(f"No student logged the loss {channel!r}.")
    if channel != "ce":
        style.plain_log(axes)
