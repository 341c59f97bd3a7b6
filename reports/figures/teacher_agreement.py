"""How close each student comes to the teacher, and what that buys on the gold answers."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import style
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
    ("teacher_agrees", "agreement (%)"),
    ("teacher_kl", "KL to teacher (nats/token)"),
    ("nll", "NLL of gold (nats/token)"),
)


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    run = estimates.run
    students = [s for s in run.students if any(estimates.has(s, name, None) for name, _ in _PANELS)]
    if not students:
        run.diagnosed  # noqa: B018  says which file is missing
        raise Missing("No student has diagnostics on every benchmark of this run.")
    figure = style.canvas(0.75 + 0.21 * len(students))
    grid = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (name, label) in zip(grid, _PANELS, strict=True):
        _panel(axes, estimates, name, students, theme)
        axes.set_xlabel(label)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks([-k for k in range(len(students))], students)
    grid[0].set_ylim(-len(students) + 0.4, 0.6)
    return figure


def _panel(axes: Axes, estimates: Estimates, name: str, students: list[str], theme: style.Theme) -> None:
    scale = measure(name).scale
    for k, student in enumerate(students):
        if k % 2 == 1:
            axes.axhspan(-k - 0.5, -k + 0.5, color=theme.grid, alpha=0.35, linewidth=0)
        if not estimates.has(student, name, None):
            continue
        e = estimates.interval(student, name, None)
        look = style.look(student, estimates.run.students, theme)
        if e.low is not None and e.high is not None:
            axes.plot([scale * e.low, scale * e.high], [-k, -k], color=look.color, linewidth=1.6, solid_capstyle="butt")
        axes.plot(
            [scale * e.value],
            [-k],
            look.marker,
            markersize=style.size(look.marker),
            color=look.color,
            markeredgecolor=theme.paper,
            markeredgewidth=0.6,
        )
