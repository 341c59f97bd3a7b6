"""What figures share: the style file, two themes, colours that survive colour blindness, how a student is drawn."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from harness.base import atomic_path
from reports.figures import _fonts
from reports.frames import weighting
from reports.statistics import Difference, Interval
from tasks.catalogue import Protocol

#: Width in inches of a figure: 17 cm, two columns of a page, and a whole number of pixels.
WIDTH = 6.69
#: A figure must be readable when it is printed this wide, in inches (8.5 cm), ...
COLUMN = 8.5 / 2.54
#: ... where no text may be smaller than this, in points.
SMALLEST = 6.0
#: Height in inches that no figure should exceed: it would leave no room for its caption on a page.
TALLEST = 9.5
DPI = 200
#: The whole style but for the colours of a theme.
STYLE = Path(__file__).with_name("report.mplstyle")
#: Characters of a student's name in one line beside an axis.
_NAME = 18


@dataclass(frozen=True)
class Theme:
    """Colours of one theme.

    ``cycle`` holds seven colours that stay apart under simulated deuteranopia, protanopia and tritanopia (Machado et al. 2009;
    any two by 20 or more in CIE76) and have a contrast of 3:1 with the paper: tests/reports/test_figures.py measures both.
    """

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    cycle: tuple[str, ...]


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1b1f24",
    "#6b7280",
    "#e4e7eb",
    ("#0097ff", "#d55e00", "#007f56", "#b877b1", "#094458", "#6b2d00", "#2e046f"),
)
DARK = Theme(
    "dark",
    "#171a1f",
    "#e8eaed",
    "#9aa3ae",
    "#2e343c",
    ("#a6b6ff", "#c34f01", "#16b577", "#ad5392", "#9fffff", "#e3d524", "#705ee6"),
)

#: Weightings with a fixed place in the cycle, so that a colour means the same in every figure and report.
_KNOWN = ("fixed", "task", "instance", "fixed@lambda0.3", "fixed@lambda4", "manual", "analytic")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "D", "v", "^", "P", "X")


@dataclass(frozen=True)
class Look:
    """How one weighting is drawn; never by colour alone."""

    color: str
    dash: Any
    marker: str


def look(student: str, students: Sequence[str], theme: Theme) -> Look:
    """Return how a student is drawn: by its weighting; ``ce`` and given models in grey, another single channel in ink."""
    own = weighting(student) if len(student.partition("@")[0].split("+")) > 1 else ""  # one channel alone is not weighed
    if student in ("teacher", "base"):
        return Look(theme.muted, "-", "*")
    if not own:
        return Look(theme.muted, "-", "o") if student == "ce" else Look(theme.ink, (0, (1, 1)), "o")
    others = sorted({weighting(s) for s in students} - {""} - set(_KNOWN))
    place = [*_KNOWN, *others].index(own)
    return Look(
        theme.cycle[place % len(theme.cycle)],
        _DASHES[(place + place // 7) % len(_DASHES)],
        _MARKERS[(place + place // 7) % len(_MARKERS)],
    )


def size(marker: str, plain: float = 7.0) -> float:
    """Return a marker's size in points at which all look equally large."""
    return plain * {"*": 1.6, "P": 1.3, "X": 1.3, "v": 1.15, "^": 1.15}.get(marker, 1.0)


@functools.cache
def _settings() -> Any:
    return mpl.rc_params_from_file(str(STYLE), use_default_template=False)


@contextmanager
def use(theme: Theme) -> Iterator[None]:
    """Apply the style within the block and restore matplotlib's settings after it."""
    colors: Any = {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.edgecolor": theme.muted,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "grid.color": theme.grid,
        "hatch.color": theme.paper,
    }
    with mpl.rc_context({**_settings(), **colors}):
        yield


def canvas(height: float) -> Figure:
    """Return an empty figure, ``height`` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def legend(figure: Figure | SubFigure, most: int = 6) -> None:
    """Put one legend for all panels above them, read line by line, in as many columns (at most ``most``) as fit.

    A figure grows by the height of its legend.
    """
    handles = {label: h for axes in figure.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not handles:
        return
    labels = list(handles)
    columns = next(k for k in range(min(most, len(labels)), 0, -1) if k == 1 or _wide(labels, k) <= 72.0 * WIDTH - 12.0)
    ordered = [label for k in range(columns) for label in labels[k::columns]]  # matplotlib fills column by column
    figure.legend([handles[label] for label in ordered], ordered, loc="outside upper center", ncols=columns)
    if isinstance(figure, Figure):
        figure.set_size_inches(WIDTH, figure.get_size_inches()[1] + 0.05 + 0.225 * math.ceil(len(labels) / columns))


def _wide(labels: Sequence[str], columns: int) -> float:
    """Points that a legend takes: 7 a letter, and 50 for the line and the space of each column."""
    return sum(50.0 + 7.0 * max(map(len, labels[k::columns])) for k in range(columns))


def save(figure: Figure, target: Path) -> None:
    """Write PNG or PDF by the suffix, without timestamps, so that the same run gives the same bytes."""
    with atomic_path(target) as path:
        if target.suffix == ".pdf":
            pdf: Any = FigureCanvasPdf(figure)
            with mpl.rc_context({"font.sans-serif": _fonts.small()}):
                pdf.print_pdf(path, metadata={"CreationDate": None, "ModDate": None})
        else:  # straight to the canvas, because savefig draws everything twice; level 4 takes a third of the time of level 6
            figure.set_dpi(DPI)
            png: Any = FigureCanvasAgg(figure)
            png.print_png(path, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    figure.set_layout_engine("none")  # places are found once for all formats


def settle(figure: Figure, like: Figure) -> None:
    """Put the axes of a figure where those of a saved one are that differs in colours only: finding places takes longest."""
    if figure.subfigs:  # which have places of their own
        return
    for own, other in zip(figure.axes, like.axes, strict=True):
        own.set_position(other.get_position(original=True))
    figure.set_layout_engine("none")


def plain_log(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic with plain numbers (0.1, 1, 10) and enough of them, however little it spans."""
    axes.set(**{f"{which}scale": "log"})
    axis: XAxis | YAxis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    spread = math.log10(high / low)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if spread < 0.6:  # no decade, perhaps not even a 2 or a 5, lies within
        axis.set_major_locator(MaxNLocator(4 if which == "y" else 3))
        axis.set_minor_locator(NullLocator())
        return
    if spread > 2.5:
        axis.set_minor_locator(NullLocator())
        return
    leads = (2, 5) if spread < 1.2 else (3,) if spread < 2.0 else ()

    def minor(value: float, _: int) -> str:
        lead = value / 10 ** math.floor(math.log10(value) + 1e-9)
        return f"{value:g}" if any(abs(lead - m) < 1e-6 for m in leads) else ""

    axis.set_minor_formatter(FuncFormatter(minor))


def steps(axes: Axes, most: int = 5) -> None:
    """Label an axis of optimiser steps: at most ``most`` + 1 whole numbers, also where lower panels of a column are empty."""
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))
    axes.tick_params(axis="x", labelbottom=True)


def short(protocol: Protocol) -> str:
    """Return a protocol's title without what the figure's own title says: the suite, in brackets."""
    return protocol.title.partition(" (")[0]


# ---- rows of students ------------------------------------------------------------------------------------------------------


def wrapped(name: str, most: int = _NAME) -> str:
    """Break a student's name before an ``@`` or after a ``+`` or ``-``, and only where it is longer than ``most`` letters."""
    lines = [""]
    for part in name.replace("@", "\n@").replace("+", "+\n").replace("-", "-\n").split("\n"):
        if lines[-1] and len(lines[-1] + part) > most:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def row_height(names: Sequence[str], least: float = 0.25) -> float:
    """Inches that one row of students needs, so that wrapped names do not touch."""
    return max([least, *(0.06 + 0.185 * (1 + wrapped(name).count("\n")) for name in names)])


def name_rows(axes: Axes, names: Sequence[str], zebra: Theme, head: float = 0.0) -> None:
    """Make rows 0, -1, -2, ... of an axis, one per name, every other one shaded; ``head``: room above, in rows."""
    axes.set_yticks([-k for k in range(len(names))], [wrapped(name) for name in names])
    axes.set_ylim(-len(names) + 0.4, 0.6 + head)
    stripe(axes, len(names), zebra)


def stripe(axes: Axes, rows: int, theme: Theme) -> None:
    """Shade every other of ``rows`` rows, without lines between them."""
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", which="both", length=0)
    for k in range(1, rows, 2):
        axes.axhspan(-k - 0.5, -k + 0.5, color=theme.grid, alpha=0.45, linewidth=0, zorder=0)


def mark(
    axes: Axes, e: Interval | Difference, y: float, own: Look, theme: Theme, scale: float = 1.0, filled: bool = True
) -> None:
    """Draw a number in its row: a marker, and its interval as a bar where there is one; hollow unless ``filled``."""
    if e.low is not None and e.high is not None:
        axes.plot([scale * e.low, scale * e.high], [y, y], color=own.color, linewidth=2.4, solid_capstyle="butt")
    face, edge = (own.color, theme.paper) if filled else (theme.paper, own.color)
    axes.plot(
        [scale * e.value], [y], own.marker, markersize=size(own.marker), color=face, markeredgecolor=edge,
        markeredgewidth=0.8 if filled else 1.6,
    )  # fmt: skip
