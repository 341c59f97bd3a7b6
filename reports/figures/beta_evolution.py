"""Figure 4 of the paper, second half: how the distillation weight moves during training."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import _facts, _lines, style
from reports.frames import Irrelevant, adapts, family, weighting
from reports.measures import Estimates
from reports.trust import varies

TITLE = "Evolution of the distillation weight β"
CAPTION = (
    "Figure 4 of the paper, second half. "
    "Weight of the distillation energy relative to cross-entropy (a ratio, no unit), on a logarithmic scale. Task weighting "
    "learns one number: a line. Instance weighting gives one per sample: the line is the median over the samples of a step, "
    "the band spans their 10th to 90th percentile. Thin lines mark weights that are given. Steps are pooled into at most 40 "
    "bins, seeds are pooled."
)
ORDER = 20
BINS = 40
#: More panels than this would be too small to read.
MOST = 18


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    run = estimates.run
    panels = _panels(estimates)[:MOST]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = style.canvas(0.35 + min(2.6, max(8.6 / lines, 1.4)) * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    flat = grid.ravel()
    for axes, (members, channel) in zip(flat, panels, strict=False):
        for student in [s for s in run.students if family(s) == members and weighting(s) and s not in _zero(estimates)]:
            _line(axes, student, channel, estimates, theme)
        axes.set_title(style.wrapped("+".join(members), 13) + (f"\nβ of {channel}" if len(members) > 1 else ""))
    for axes in flat[len(panels) :]:
        axes.set_visible(False)
    for axes in flat[: len(panels)]:
        style.plain_log(axes)  # after everything is drawn, because ticks depend on the limits
    for column in range(columns):
        style.steps([row[column] for row in grid if row[column].get_visible()][-1], most=5 if columns < 3 else 3)
    for axes in grid[:, 0]:
        axes.set_ylabel("β (ratio to ce)")
    style.legend(figure)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """Numbers; what is left out: weights of zero, which a logarithmic axis has no place for, and panels beyond the room."""
    zero, lost = sorted(_zero(estimates)), _panels(estimates)[MOST:]
    out = [f"{_facts.trainings(estimates)} {_samples_told(estimates)}".strip()]
    out += [f"Not drawn, because weights of 0 have no place on a logarithmic axis: {', '.join(zero)}."] if zero else []
    return out + _facts.unroomy(["+".join(members) for members, _ in lost])


def _samples_told(estimates: Estimates) -> str:
    """How many weights stand behind the bands."""
    rows = [len(frame) for s in estimates.run.students if adapts(s) for frame in [estimates.run.betas_of(s)] if len(frame)]
    return f"Bands: {_facts.span(rows)} recorded weights per student, all seeds." if rows else ""


def _panels(estimates: Estimates) -> list[tuple[tuple[str, ...], str]]:
    trained = set(_lines.dynamics(estimates.run)["student"].unique())
    learned = [s for s in estimates.run.students if adapts(s) and s in trained]
    panels = list(dict.fromkeys((family(s), c) for s in learned for c in family(s)))
    if not panels:
        raise Irrelevant("No student of this run learns its weighting.")
    return panels


def _zero(estimates: Estimates) -> set[str]:
    """Students that gave some sample, or all of them, a weight of zero."""

    def find() -> set[str]:
        run = estimates.run
        logged = run.dynamics[(run.dynamics["weight"] == 0.0) & (run.dynamics["channel"] != "ce")]["student"].unique()
        return {str(s) for s in logged} | {s for s in run.students if weighting(s) and (run.betas_of(s)["beta"] == 0.0).any()}

    return estimates.once("zero weights", find)


def _line(axes: Axes, student: str, channel: str, estimates: Estimates, theme: style.Theme) -> None:
    look = style.look(student, estimates.run.students, theme)
    samples = _samples(student, channel, estimates) if adapts(student) else None
    if samples is None:
        means = _means(estimates).get((student, channel))
        if means is not None:
            width = 2.0 if adapts(student) else 1.2
            axes.plot(means.index, means, color=look.color, linewidth=width, linestyle=look.dash, label=weighting(student))
        return
    edges = np.linspace(samples["step"].min(), samples["step"].max() + 1, BINS + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    table = samples.groupby(np.digitize(samples["step"], edges) - 1)["beta"]
    low, mid, high = (table.quantile(q) for q in (0.1, 0.5, 0.9))
    where = middle[mid.index.to_numpy()]
    axes.plot(where, mid, color=look.color, linestyle=look.dash, label=f"{weighting(student)} (median, 10–90 %)")
    axes.fill_between(where, low, high, facecolor=look.color, alpha=0.18, linewidth=0)
    for edge in (low, high):  # bands overlap: their edges keep them apart
        axes.plot(where, edge, color=look.color, linewidth=0.7, alpha=0.7)


def _means(estimates: Estimates) -> dict[tuple[str, str], pd.Series]:
    """Weight by step, mean over seeds, of every student and channel."""

    def find() -> dict[tuple[str, str], pd.Series]:
        logged = estimates.run.dynamics.dropna(subset="weight").groupby(["student", "channel"], sort=False)
        return {(str(s), str(c)): rows.groupby("step")["weight"].mean() for (s, c), rows in logged}

    return estimates.once("mean weights", find)


def _samples(student: str, channel: str, estimates: Estimates) -> pd.DataFrame | None:
    """Per-sample weights, or None where the student has none or all samples of a step share one."""
    rows = estimates.run.betas_of(student)
    rows = rows[rows["channel"] == channel]
    return rows if len(rows) and varies(rows) else None
