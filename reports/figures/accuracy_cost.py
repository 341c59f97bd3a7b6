"""What a student's training costs, and what it gets for it."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import _facts, style
from reports.frames import Irrelevant, Missing, family
from reports.measures import Estimates

TITLE = "Score against cost"
CAPTION = (
    "Average score over the benchmarks, in percent of each one's range, with its 95 % interval, against the wall time of one "
    "training (median over seeds; small ticks below: single seeds); one panel per energy, the run's other students in pale "
    "grey. Teacher passes that all students share, and evaluation, are not in the time. Time is measured, not sampled, and "
    "students that train side by side share the processor, so only large differences in time mean something."
)
ORDER = 44
#: More panels than this would be too small to read.
MOST = 18


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    found = _seconds(estimates)
    panels = _panels(estimates)[:MOST]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = style.canvas(0.3 + (2.5 if lines < 4 else 1.75) * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    everyone = [(statistics.median(s), estimates.interval(name, "score", None).value) for name, s in found.items()]
    for axes, (title, members) in zip(grid.ravel(), panels, strict=False):
        axes.plot(
            *zip(*everyone, strict=True), "o", markersize=5, color=theme.grid, markeredgecolor=theme.muted, markeredgewidth=0.5
        )
        for student in members:
            _point(axes, student, found[student], estimates, theme)
        axes.set_title(title)
        axes.locator_params(axis="x", nbins=4)
        axes.margins(0.1)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("average (%)" if lines > 3 else "average score (%)")
    for column in range(columns):
        lowest = [row[column] for row in grid if row[column].get_visible()][-1]
        lowest.set_xlabel("training time (s)")
        lowest.tick_params(axis="x", labelbottom=True)
    style.legend(figure)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """n, seeds, intervals; students whose cost is not on record; what is left out."""
    found = _seconds(estimates)
    out = [_facts.questions([estimates.interval(s, "score", None) for s in found], estimates.level)]
    absent = [s for s in estimates.run.manifest.students if s not in found]
    out += [f"Not drawn, because their cost or a score is not in the run: {', '.join(absent)}."] if absent else []
    return out + _facts.unroomy([title for title, _ in _panels(estimates)[MOST:]])


def _seconds(estimates: Estimates) -> dict[str, list[float]]:
    """Wall time of each training, by student that has a score too."""

    def find() -> dict[str, list[float]]:
        run = estimates.run
        costs = {s: [float(c["seconds"]) for c in run.costs(s) if c["seconds"] is not None] for s in run.manifest.students}
        if not costs:
            raise Irrelevant("Nothing was trained in this run.")
        if not any(costs.values()):
            raise Missing("The run holds no cost.json: its students were trained by a version that did not record their cost.")
        found = {s: seconds for s, seconds in costs.items() if seconds and estimates.has(s, "score", None)}
        if not found:
            raise Missing("No trained student of this run has a score on every benchmark.")
        return found

    return estimates.once("seconds", find)


def _panels(estimates: Estimates) -> list[tuple[str, list[str]]]:
    """One panel per energy, with plain training in every one; a panel of its own where nothing else was trained."""
    found = list(_seconds(estimates))
    plain = [s for s in found if not family(s)]
    families = dict.fromkeys(family(s) for s in found if family(s))
    panels = [(style.wrapped("+".join(m), 13), [*plain, *(s for s in found if family(s) == m)]) for m in families]
    return panels or [("ce", plain)]


def _point(axes: Axes, student: str, seconds: list[float], estimates: Estimates, theme: style.Theme) -> None:
    own = style.look(student, estimates.run.students, theme)
    e = estimates.interval(student, "score", None)
    x = statistics.median(seconds)
    label = student.partition("@")[2] if "+" in student else ("ce alone" if student == "ce" else "energy alone")
    if e.low is not None and e.high is not None:
        axes.vlines([x], e.low, e.high, color=own.color, linewidth=2.0)
    axes.plot(
        [x], [e.value], own.marker, markersize=style.size(own.marker), color=own.color, markeredgecolor=theme.paper, label=label
    )
    if len(seconds) > 1 and e.low is not None:
        axes.plot(seconds, [e.low] * len(seconds), "|", markersize=5, color=own.color)
