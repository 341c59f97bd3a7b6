"""Differences of scores as a forest plot: one panel per benchmark, one row per pair of students."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.figures import _facts, style
from reports.frames import Irrelevant, Run
from reports.measures import Estimates
from reports.statistics import Difference
from reports.tables import counterpart
from tasks.catalogue import Protocol

CAPTION = (
    "Dot: difference of the benchmark's own number, mean over seeds; bar: its interval. Filled: resolved (after Holm's "
    "correction over the benchmarks of a pair); hollow: not resolved. Right of the line: the student is better. The average is "
    "in percent of each benchmark's range. Pairs are compared on the same questions; they are not corrected for their number."
)
#: With more rows than this only the average is drawn.
_FEW = 10
_COLUMNS = 4


@dataclass(frozen=True)
class Pair:
    """A student, whom it is compared with, and the differences found: by protocol name, the average under None."""

    student: str
    other: str
    found: dict[str | None, Difference]


def pairs(estimates: Estimates, minus: Sequence[str]) -> list[Pair]:
    """Return every student with the first of ``minus`` (``ce``, or ``@fixed``: its own channels so weighed) that there is.

    Raises:
        Irrelevant: where the run holds no such pair. Missing: where it holds no scores.
    """
    run = estimates.run
    run.scores_by_student  # noqa: B018  says what is missing
    out = []
    for student in run.students:
        others = [o for o in (counterpart(student, m, run.students) for m in minus) if o is not None]
        if run.kinds.get(student) != "student" or not others or run.kinds.get(others[0]) != "student":
            continue
        where = [p for p in [*run.protocols, None] if all(estimates.has(s, "score", p) for s in (student, others[0]))]
        found = {None if p is None else p.name: estimates.difference(student, others[0], "score", p) for p in where}
        if found:
            out.append(Pair(student, others[0], found))
    if not out:
        raise Irrelevant(f"The run holds no two scored students of which one is {' or '.join(minus)}.")
    return out


def draw(estimates: Estimates, theme: style.Theme, found: Sequence[Pair]) -> Figure:
    """Draw the average and, where there is room, every benchmark."""
    run = estimates.run
    shown = _panels(run, found)
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    names = [p.student for p in found]
    figure = style.canvas(lines * (0.75 + style.row_height(names) * len(found)))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, protocol in zip(grid.ravel(), shown, strict=False):
        _panel(axes, protocol, found, run, theme)
    for axes in grid.ravel()[len(shown) :]:
        axes.set_visible(False)
    style.name_rows(grid[0][0], names, theme)
    for axes in grid.ravel()[1:]:
        style.stripe(axes, len(found), theme)
    return figure


def notes(estimates: Estimates, found: Sequence[Pair]) -> list[str]:
    """Whom students are compared with, n, seeds, intervals, and what is not drawn."""
    results = [d for pair in found for d in pair.found.values()]
    out = [f"Compared with: {', '.join(dict.fromkeys(p.other for p in found))}."]
    out.append(_facts.questions(results, estimates.level))
    if len(_panels(estimates.run, found)) == 1 and len(estimates.run.protocols) > 1:
        out.append("One row per student leaves room for the average alone; the tables have every benchmark.")
    return out


def _panels(run: Run, found: Sequence[Pair]) -> list[Protocol | None]:
    """The average first, where there is one; every benchmark where rows are few or there is no average."""
    mean: list[Protocol | None] = [None] if len(run.protocols) > 1 and any(None in p.found for p in found) else []
    each: list[Protocol | None] = [p for p in run.protocols if any(p.name in pair.found for pair in found)]
    return mean + each if len(found) <= _FEW or not mean else mean


def _panel(axes: Axes, protocol: Protocol | None, found: Sequence[Pair], run: Run, theme: style.Theme) -> None:
    axes.axvline(0.0, color=theme.ink, linewidth=1.0)
    for k, pair in enumerate(found):
        d = pair.found.get(None if protocol is None else protocol.name)
        if d is not None:
            style.mark(axes, d, -k, style.look(pair.student, run.students, theme), theme, filled=d.resolved)
    axes.set_title("Average" if protocol is None else style.short(protocol))
    unit = "percent" if protocol is None else protocol.unit
    axes.set_xlabel("% of range" if protocol is None else {"percent": "% points"}.get(unit, unit))
    _few_ticks(axes)


def _few_ticks(axes: Axes) -> None:
    """Ticks whose labels have room in a narrow panel: three short ones, or 0 and one long one."""
    far = max(axes.get_xlim(), key=abs)
    if abs(far) < 500.0:
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    else:
        axes.set_xticks([0.0, math.copysign(10.0 ** math.floor(math.log10(abs(far))), far)])
