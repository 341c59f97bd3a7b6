"""How close each student comes to the teacher, and what that buys on the gold answers."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.figures import _facts, style
from reports.frames import Missing
from reports.measures import Estimates, measure

TITLE = "Teacher-student agreement"
CAPTION = (
    "Mean over the benchmarks with equal weight and 95 % cluster-bootstrap interval. Left: share of test questions on which "
    "the student's most probable token equals the teacher's at every position of the gold answer. Middle: KL(teacher || "
    "student) per answer token. Right: negative log-likelihood of the gold answer per token, where the teacher itself can be "
    "placed. Being near the teacher is the aim of distilling, not of answering: compare with the right panel."
)
ORDER = 40
_PANELS = (
    ("teacher_agrees", "Agreement", "%"),
    ("teacher_kl", "KL to teacher", "nats/token"),
    ("nll", "NLL of gold", "nats/token"),
)


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    students = _students(estimates)
    figure = style.canvas(0.95 + style.row_height(students) * len(students))
    grid = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (name, title, unit) in zip(grid, _PANELS, strict=True):
        for k, student in enumerate(students):
            if estimates.has(student, name, None):
                own = style.look(student, estimates.run.students, theme)
                style.mark(axes, estimates.interval(student, name, None), -k, own, theme, measure(name).scale)
        axes.set_title(title)
        axes.set_xlabel(unit)
        axes.locator_params(axis="x", nbins=4)
    style.name_rows(grid[0], students, theme)
    for axes in grid[1:]:
        style.stripe(axes, len(students), theme)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """n, seeds, intervals."""
    asked = [(s, name) for s in _students(estimates) for name, *_ in _PANELS]
    found = [estimates.interval(s, name, None) for s, name in asked if estimates.has(s, name, None)]
    return [_facts.questions(found, estimates.level)]


def _students(estimates: Estimates) -> list[str]:
    students = [s for s in estimates.run.students if any(estimates.has(s, name, None) for name, *_ in _PANELS)]
    if not students:
        estimates.run.diagnosed  # noqa: B018  says which file is missing
        raise Missing("No student has diagnostics on every benchmark of this run.")
    return students
