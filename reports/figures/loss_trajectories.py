"""Figure 4 of the paper, first half: cross-entropy and the distillation energy over training, one panel per energy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import _facts, _lines, style
from reports.figures._energies import ENERGIES
from reports.frames import Missing, family
from reports.measures import Estimates

TITLE = "Loss trajectories"
CAPTION = (
    "Figure 4 of the paper, first half. "
    "Training losses before weighting, mean over the samples of a step (each the mean over its answer tokens), smoothed by a "
    "running mean over 5 % of the steps. Cross-entropy is against the training labels (noisy where the run injects noise), "
    "with the student trained on it alone in every such panel; distillation energies are on a logarithmic scale. Lines: "
    "mean over seeds; bands: from the lowest to the highest seed, where there are several. A lower training loss is no claim "
    "about the test, and energies are no common scale."
)
ORDER = 10

#: Panels of one row.
_COLUMNS = 3
#: More families than this would be too small to read.
MOST = 18


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    by_student = _by_student(estimates)
    families = _families(estimates)[:MOST]
    both = any("ce" in by_student[s] for members in families if members for s in _own(members, by_student))
    depth = both + max([1, *(len(members) for members in families)])
    columns = min(len(families), _COLUMNS)
    lines = -(-len(families) // columns)
    figure = style.canvas(0.35 + min(2.3, max(8.6 / (depth * lines), 1.4)) * depth * lines)
    grid = figure.subplots(depth * lines, columns, squeeze=False, sharex=True)
    for k in range(columns * lines):
        place = [grid[k // columns * depth + row][k % columns] for row in range(depth)]
        if k < len(families):
            _family(place, families[k], both, by_student, estimates, theme)
        else:
            for axes in place:
                axes.set_visible(False)
    for column in range(columns):
        style.steps([row[column] for row in grid if row[column].get_visible()][-1], most=5 if columns < 3 else 3)
    if len({label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]}) > 1:
        style.legend(figure)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """Numbers of steps and seeds, and which energies are left out for want of room."""
    lost = ["+".join(members) for members in _families(estimates)[MOST:]]
    return [_facts.trainings(estimates), *_facts.unroomy(lost)]


def _by_student(estimates: Estimates) -> dict[str, dict[str, pd.DataFrame]]:
    """Loss by step and seed, smoothed, of each student and channel."""

    def find() -> dict[str, dict[str, pd.DataFrame]]:
        out: dict[str, dict[str, pd.DataFrame]] = {}
        for (student, channel), rows in _lines.dynamics(estimates.run).groupby(["student", "channel"], sort=False):
            table = _lines.smooth(rows, "loss")
            if len(table):
                out.setdefault(str(student), {})[str(channel)] = table
        return out

    return estimates.once("losses", find)


def _families(estimates: Estimates) -> list[tuple[str, ...]]:
    """What the trained students distil with, in the run's order; ``ce`` has a panel of its own where none shares it."""
    by_student = _by_student(estimates)
    trained = [s for s in estimates.run.students if s in by_student]
    if not trained:
        raise Missing("No student of this run logged a loss.")
    shared = any(family(s) and "ce" in by_student[s] for s in trained)
    return list(dict.fromkeys(family(s) for s in trained if family(s) or not shared))


def _own(members: tuple[str, ...], by_student: dict[str, dict[str, pd.DataFrame]]) -> list[str]:
    return [s for s in by_student if family(s) == members]


def _family(
    place: Sequence[Axes], members: tuple[str, ...], both: bool, by_student: dict[str, dict[str, pd.DataFrame]],
    estimates: Estimates, theme: style.Theme,
) -> None:  # fmt: skip
    channels = ["ce", *members] if both or not members else list(members)
    for row, axes in enumerate(place):
        if row >= len(channels):
            axes.set_visible(False)
            continue
        channel = channels[row]
        shown = _own(members, by_student) + (_own((), by_student) if channel == "ce" and members else [])
        drawn = [s for s in estimates.run.students if s in shown and channel in by_student[s]]
        for student in drawn:
            _lines.band(axes, by_student[student][channel], student, estimates.run, theme)
        if row == 0:
            axes.set_title(style.wrapped("+".join(members) or "ce", 13))
        axes.set_ylabel(_label(channel, alone=len(channels) == 1))
        if channel != "ce" and drawn:
            style.plain_log(axes)
        if not drawn:
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=theme.muted)


def _label(channel: str, alone: bool) -> str:
    """What is measured, and its unit; a title says the first where a panel stands ``alone``."""
    unit = "nats" if channel == "ce" else ENERGIES[channel][1] if channel in ENERGIES else ""
    if alone:
        return unit or "no unit"
    return f"{channel} ({unit})" if unit else channel
