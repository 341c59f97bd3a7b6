"""Lines over optimiser steps: smoothed, mean over seeds, with a band that spans the seeds."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from reports.figures import style
from reports.frames import Irrelevant, Run

#: Share of the steps over which lines are smoothed by a running mean.
SMOOTH = 0.05


def dynamics(run: Run) -> pd.DataFrame:
    """Return ``run.dynamics``; :class:`Irrelevant` where the run has no students to train."""
    if not run.manifest.students:
        raise Irrelevant("Nothing was trained in this run.")
    return run.dynamics


def smooth(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return ``column`` by step (rows) and seed (columns), smoothed; empty where nothing was logged."""
    table = rows.pivot_table(index="step", columns="seed", values=column)
    return table.rolling(max(1, int(len(table) * SMOOTH)), min_periods=1).mean()


def band(axes: Axes, table: pd.DataFrame, student: str, run: Run, theme: style.Theme) -> None:
    """Draw a student's line, labelled by its weighting, and the band of its seeds."""
    own = style.look(student, run.students, theme)
    alone = "ce alone" if student == "ce" else "energy alone"
    label = student.partition("@")[2] if "+" in student else alone
    axes.plot(table.index, table.mean(axis=1), color=own.color, linestyle=own.dash, label=label)
    if table.shape[1] > 1:
        axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=own.color, alpha=0.18, linewidth=0)
