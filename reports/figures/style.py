"""The one place that says what figures look like: sizes, fonts, colours that survive colour blindness, two themes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from harness.base import atomic_path
from reports.frames import weighting

#: Width in inches of a figure across both columns of a page.
WIDTH = 6.8
DPI = 200


@dataclass(frozen=True)
class Theme:
    """Colours of one theme; ``cycle`` is Okabe & Ito's palette (2008), lightened for dark paper."""

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
    ("#0072b2", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#b8860b", "#7f6fc4"),
)
DARK = Theme(
    "dark",
    "#171a1f",
    "#e8eaed",
    "#9aa3ae",
    "#2e343c",
    ("#5aaee8", "#f28a45", "#2fc79b", "#a5d8f7", "#e6a3c8", "#e3bd4f", "#b4a7ee"),
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
        theme.cycle[place % len(theme.cycle)], _DASHES[(place + place // 7) % len(_DASHES)], _MARKERS[place % len(_MARKERS)]
    )


def size(marker: str, plain: float = 5.0) -> float:
    """Return a marker's size in points at which all look equally large."""
    return plain * {"*": 1.6, "P": 1.3, "X": 1.3}.get(marker, 1.0)


@contextmanager
def use(theme: Theme) -> Iterator[None]:
    """Apply the style within the block and restore matplotlib's settings after it."""
    settings: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so every machine draws the same
        "font.size": 8.0,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 6.0,
        "axes.labelsize": 8.0,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.4,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.major.size": 3.0,
        "ytick.major.size": 3.0,
        "xtick.minor.size": 1.8,
        "ytick.minor.size": 1.8,
        "xtick.minor.pad": 4.7,  # shorter ticks, the same baseline of labels
        "ytick.minor.pad": 4.7,
        "pdf.fonttype": 42,  # embed TrueType, so that text in the PDF can be selected and edited
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
    }
    with mpl.rc_context(settings):
        yield


def canvas(height: float) -> Figure:
    """Return an empty full-width figure, ``height`` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def legend(figure: Figure) -> None:
    """Put one legend for all panels above them, read line by line in the order in which things were drawn."""
    handles = {label: h for axes in figure.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = len(handles) if len(handles) <= 5 else -(-len(handles) // 2)
    labels = [label for k in range(columns) for label in list(handles)[k::columns]]  # matplotlib fills column by column
    figure.legend([handles[label] for label in labels], labels, loc="outside upper center", ncols=columns)


def save(figure: Figure, target: Path) -> None:
    """Write PNG or PDF by the suffix, without timestamps, so that the same run gives the same bytes."""
    kind = target.suffix.removeprefix(".")
    metadata: dict[str, Any] = {"CreationDate": None, "ModDate": None} if kind == "pdf" else {"Software": None}
    with atomic_path(target) as path:
        figure.savefig(path, format=kind, dpi=DPI, metadata=metadata)


def plain_log(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic with plain numbers (0.1, 1, 10) and enough of them, however little it spans."""
    axes.set(**{f"{which}scale": "log"})
    axis: XAxis | YAxis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    spread = math.log10(high / low)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if spread < 0.6:  # no decade, perhaps not even a 2 or a 5, lies within
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        return
    leads = (2, 5) if spread < 2.0 else ()

    def minor(value: float, _: int) -> str:
        lead = value / 10 ** math.floor(math.log10(value) + 1e-9)
        return f"{value:g}" if any(abs(lead - m) < 1e-6 for m in leads) else ""

    axis.set_minor_formatter(FuncFormatter(minor))


def steps(axes: Axes, most: int = 8) -> None:
    """Label an axis of optimiser steps: at most ``most`` + 1 whole numbers, also where lower panels of a column are empty."""
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))
    axes.tick_params(axis="x", labelbottom=True)
