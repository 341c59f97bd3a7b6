"""Figure 4 of the paper, first half: what is minimised, which an uncertainty weighting takes below zero."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports.figures import _facts, _lines, style
from reports.frames import Irrelevant, family, weighting
from reports.measures import Estimates

TITLE = "Total loss"
CAPTION = (
    "What each student minimises: its weighted losses plus the weighting's own term, mean over the samples of a step, smoothed "
    "by a running mean over 5 % of the steps. Lines: mean over seeds; bands: from the lowest to the highest seed, where there "
    "are several. Totals of different weightings are different objectives: which line is lower says nothing about which "
    "student is better."
)
ORDER = 12
#: More panels than this would be too small to read.
MOST = 18
#: More students than this are told by their weightings.
_FEW = 6


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    run, totals = estimates.run, _totals(estimates)
    families = _families(estimates)[:MOST]
    columns = min(3, len(families))
    lines = -(-len(families) // columns)
    figure = style.canvas(0.35 + min(2.7, max(8.6 / lines, 1.4)) * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axes, members in zip(grid.ravel(), families, strict=False):
        for student in [s for s in run.students if s in totals and family(s) == members]:
            _lines.band(axes, totals[student], student, run, theme)
        if axes.get_ylim()[0] < 0.0:
            axes.axhline(0.0, color=theme.ink, linewidth=1.0)
        axes.set_title(style.wrapped("+".join(members), 13))
    for axes in grid.ravel()[len(families) :]:
        axes.set_visible(False)
    for column in range(columns):
        style.steps([row[column] for row in grid if row[column].get_visible()][-1], most=5 if columns < 3 else 3)
    for axes in grid[:, 0]:
        axes.set_ylabel("total loss (nats)" if lines == 1 else "total (nats)")
    style.legend(figure)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """Numbers of steps and seeds; why a total is negative, where one is; what is left out."""
    below = [s for s, table in _totals(estimates).items() if bool((table < 0.0).to_numpy().any())]
    out = [_facts.trainings(estimates)]
    if below:
        words = sorted({f"@{weighting(s)}" for s in below})
        who = ", ".join(below) if len(below) <= _FEW else f"{len(below)} students, weighed by {', '.join(words)}"
        out.append(
            f"Below zero at some step: {who}. That is no error. A weight β that is learned as a precision pays −(d/2) log β "
            "for being large, the logarithm of a density's normalisation, which is negative once β > 1. At the best "
            "β = d / (2 energy) a channel adds (d/2)(1 + log(2 energy / d)), which has no lower bound as the energy falls to 0."
        )
    return out + _facts.unroomy(["+".join(members) for members in _families(estimates)[MOST:]])


def _channels(student: str) -> list[str]:
    return student.partition("@")[0].split("+")


def _totals(estimates: Estimates) -> dict[str, pd.DataFrame]:
    """Total by step and seed, smoothed, of each student with several channels."""

    def find() -> dict[str, pd.DataFrame]:
        frame = _lines.dynamics(estimates.run).drop_duplicates(["student", "seed", "step"])
        found = {str(s): rows for s, rows in frame.groupby("student", sort=False) if len(_channels(str(s))) > 1}
        if not found:
            raise Irrelevant("Every student of this run has one loss: its total is that loss.")
        return {student: _lines.smooth(rows, "total") for student, rows in found.items()}

    return estimates.once("totals", find)


def _families(estimates: Estimates) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(family(s) for s in estimates.run.students if s in _totals(estimates)))
