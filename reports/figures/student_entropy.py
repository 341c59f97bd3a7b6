"""Figure 6 of the paper: how sure a trained student is of its answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import _facts, style
from reports.frames import Missing
from reports.measures import Estimates

TITLE = "Entropy of the students' answers"
CAPTION = (
    "Figure 6 of the paper, on the test questions of all benchmarks: entropy of the distribution over tokens from which the "
    "first answer token is taken. Left: median (dot), middle half (thick bar), 10th to 90th percentile (thin bar) of the "
    "questions, seeds pooled, on a logarithmic scale. Right: mean over the benchmarks with equal weight and its 95 % interval. "
    "Less entropy is more certainty, not more correctness: compare the calibration."
)
ORDER = 24


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    run, found = estimates.run, _entropies(estimates)
    students = [s for s in run.students if s in found]
    figure = style.canvas(0.8 + style.row_height(students) * len(students))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1.0])
    for k, student in enumerate(students):
        own = style.look(student, run.students, theme)
        _spread(left, found[student], -k, own, theme)
        if estimates.has(student, "entropy", None):
            style.mark(right, estimates.interval(student, "entropy", None), -k, own, theme)
    style.name_rows(left, students, theme)
    style.stripe(right, len(students), theme)
    style.plain_log(left, "x")
    left.set_xlabel("entropy (nats)")
    right.set_xlabel("mean entropy (nats)")
    right.locator_params(axis="x", nbins=5)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """n, seeds, intervals; and that entropy over training is not on record."""
    run = estimates.run
    results = [estimates.interval(s, "entropy", None) for s in run.students if estimates.has(s, "entropy", None)]
    return [_facts.questions(results, estimates.level), "How entropy moves during training is not recorded."]


def _entropies(estimates: Estimates) -> dict[str, pd.Series]:
    """Entropy of every question and seed, by student."""

    def find() -> dict[str, pd.Series]:
        parts = {s: rows["entropy"].dropna() for s, rows in estimates.run.diagnosed_by_student.items()}
        kept = {s: values for s, values in parts.items() if len(values)}
        if not kept:
            raise Missing("The run's diagnostics hold no entropy.")
        return kept

    return estimates.once("entropies", find)


def _spread(axes: Axes, values: pd.Series, y: float, own: style.Look, theme: style.Theme) -> None:
    q = np.maximum(np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9]), 1e-6)  # certainty in float32 has no logarithm
    axes.plot([q[0], q[4]], [y, y], color=own.color, linewidth=1.4, solid_capstyle="butt")
    axes.plot([q[1], q[3]], [y, y], color=own.color, linewidth=5.0, solid_capstyle="butt", alpha=0.75)
    axes.plot([q[2]], [y], own.marker, markersize=style.size(own.marker), color=own.color, markeredgecolor=theme.paper)
