"""Figure 5 of the paper: what logits teacher and student give, early and late in training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import _facts, style
from reports.figures._snapshots import Snapshots, snapshots
from reports.frames import family
from reports.measures import Estimates

TITLE = "Logits of teacher and student, early and late"
CAPTION = (
    "Figure 5 of the paper. Density of the logits of all tokens of the vocabulary at the supervised positions of one step, "
    "before the softmax, on a logarithmic scale, because few logits belong to tokens that answer: the right tail. Left of each "
    "pair: early, right: late. Grey area: the teacher on the same samples; lines: students, by weighting, broken where no "
    "logit fell; seeds are pooled. Logits are defined up to a number added to all of them at a position, so a shift of a whole "
    "curve is no difference between the models' answers; its width and its right tail are."
)
ORDER = 22
#: More rows than this would be too small to read.
MOST = 18


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    found = snapshots(estimates)
    families = _families(estimates, found)[:MOST]
    pairs = 1 if len(families) <= 4 else 2
    lines = -(-len(families) // pairs)
    figure = style.canvas(0.4 + min(2.2, max(8.6 / lines, 0.95)) * lines)
    grid = figure.subplots(lines, 2 * pairs, squeeze=False, sharex=True, sharey=True)
    for k, members in enumerate(families):
        for side, moment in enumerate(("early", "late")):
            axes = grid[k // pairs][2 * (k % pairs) + side]
            shown = [s for s in estimates.run.students if s in found.students and family(s) == members]
            _panel(axes, shown, moment, found, estimates, theme)
            axes.set_title(style.wrapped("+".join(members) or "ce", 13) if side == 0 else "")
            axes.text(0.97, 0.93, moment_told(found, moment), transform=axes.transAxes, ha="right", va="top")
    for k in range(len(families), lines * pairs):
        for side in range(2):
            grid[k // pairs][2 * (k % pairs) + side].set_visible(False)
    for column in range(2 * pairs):
        lowest = [row[column] for row in grid if row[column].get_visible()][-1]
        lowest.set_xlabel("logit (nats)")
        lowest.tick_params(axis="x", labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("density" if lines > 3 else "density (per nat)")
        axes.set_ylim(_floor(found), 3.0)
        style.plain_log(axes)
    style.legend(figure)
    return figure


def moment_told(found: Snapshots, moment: str) -> str:
    """The step that a moment is: ``step 250``."""
    steps = sorted({step for s in found.students.values() for step in s.steps[moment]})
    return f"step {steps[0]}" if len(steps) == 1 else f"{steps[0]}–{steps[-1]}"


def notes(estimates: Estimates) -> list[str]:
    """Numbers of logits and seeds, the steps, students without a snapshot, and what is left out."""
    found = snapshots(estimates)
    n = [count for s in found.students.values() for count in s.counts.values()]
    seeds = _facts.seeds_told(len(s.steps["early"]) for s in found.students.values())
    out = [
        f"Early is {moment_told(found, 'early')}, late {moment_told(found, 'late')}. n = {_facts.span(n)} logits per "
        f"student and moment, {seeds}; counts, without intervals."
    ]
    absent = [s for s in estimates.run.manifest.students if s not in found.students]
    out += [f"Without a snapshot, and not drawn: {', '.join(absent)}."] if absent else []
    alone = [name for name, s in found.students.items() if ("teacher", "early") not in s.density]
    if alone:
        out.append(
            "No teacher is drawn where none was at hand, or only its likeliest tokens were kept, which have no logits:"
            f" {', '.join(alone)}."
        )
    return out + _facts.unroomy(["+".join(members) for members in _families(estimates, found)[MOST:]])


def _floor(found: Snapshots) -> float:
    """The lower end of the density axis: half the smallest density that one logit can make."""
    width = float(found.edges[1] - found.edges[0])
    return 0.5 / (width * max(count for s in found.students.values() for count in s.counts.values()))


def _families(estimates: Estimates, found: Snapshots) -> list[tuple[str, ...]]:
    """What students distil with, ``ce`` last: it never looks at the teacher."""
    order = list(dict.fromkeys(family(s) for s in estimates.run.students if s in found.students))
    return sorted(order, key=lambda members: not members)


def _panel(axes: Axes, shown: list[str], moment: str, found: Snapshots, estimates: Estimates, theme: style.Theme) -> None:
    """One moment of one energy; the teacher as its first student met it, for all are trained on the same samples."""
    met = [s for s in shown if ("teacher", moment) in found.students[s].density]
    if met:
        axes.stairs(
            found.students[met[0]].density["teacher", moment], found.edges, baseline=_floor(found), fill=True,
            color=theme.muted, alpha=0.45, linewidth=0, label="teacher",
        )  # fmt: skip
    middle = (found.edges[:-1] + found.edges[1:]) / 2
    for student in shown:
        own = style.look(student, estimates.run.students, theme)
        label = student.partition("@")[2] if "+" in student else ("ce alone" if student == "ce" else "energy alone")
        color = theme.ink if student == "ce" else own.color  # grey is the teacher's here
        density = found.students[student].density["student", moment]
        axes.plot(middle, np.where(density > 0, density, np.nan), color=color, linestyle=own.dash, label=label)
