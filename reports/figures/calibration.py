"""Reliability: is a student right as often as it is sure?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from reports.figures import _facts, style
from reports.frames import family
from reports.measures import Estimates

TITLE = "Calibration"
#: Bins of equal width; a bin with fewer questions than this is not drawn.
BINS, LEAST = 10, 20
CAPTION = (
    "Share of questions answered right against the confidence (largest probability at the first answer token), in ten bins of "
    f"equal width, over the questions of all benchmarks; bins of fewer than {LEAST} are left out. On the diagonal a student "
    "is right as often as it is sure; below it, it is too sure. Bars: 95 % Wilson intervals for the number of questions that "
    "the clustering of questions leaves (n over the design effect of the bin); seeds are pooled, each question a cluster. "
    "Bottom of each panel: where the confidences lie (share of questions per bin)."
)
ORDER = 42
#: More panels than this would be too small to read.
MOST = 18
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """One student's bins that hold enough questions.

    Attributes:
        confidence, right, low, high: float64 [K], mean confidence, share right and the interval's ends, 0..1.
        shares: float64 [BINS], share of the questions in each bin; n: questions, all seeds.
    """

    confidence: _Floats
    right: _Floats
    low: _Floats
    high: _Floats
    shares: _Floats
    n: int


def reliability(frame: pd.DataFrame, level: float) -> Reliability:
    """Bin one student's questions.

    Args:
        frame: confidence and score, 0..1, and cluster, one row per question and seed; level: of the intervals.
    """
    confidence, score = (frame[c].to_numpy(dtype=np.float64) for c in ("confidence", "score"))
    where = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    clusters = pd.factorize(frame["cluster"])[0]
    rows = []
    for k in range(BINS):
        own = where == k
        n = int(own.sum())
        if n < LEAST:
            continue
        right = float(score[own].mean())
        rows.append((float(confidence[own].mean()), right, *wilson(right, effective(score[own], clusters[own]), level)))
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    shares = np.bincount(where, minlength=BINS) / len(where)
    return Reliability(table[:, 0], table[:, 1], table[:, 2], table[:, 3], shares, len(where))


def effective(score: _Floats, clusters: NDArray[np.int64]) -> float:
    """Return how many independent questions would tell as much: n over the design effect (Kish 1965, ch. 5.4; 8.2).

    Args:
        score: [n], 0..1; clusters: [n] codes. Where all score alike, the number of clusters: the most cautious answer.
    """
    n, mean = len(score), float(score.mean())
    sums = np.bincount(clusters, weights=score - mean)
    count = len(np.unique(clusters))
    if np.ptp(score) == 0.0 or count < 2:
        return float(count)
    variance = float((sums**2).sum()) / n**2 * count / (count - 1)
    return min(float(n), mean * (1.0 - mean) / variance) if variance > 0.0 else float(count)


def wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Return Wilson's interval (1927) of a share of ``n`` units, which need be no whole number."""
    z = float(stats.norm.ppf(0.5 + level / 2.0))
    middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half = z / (1.0 + z * z / n) * float(np.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n)))
    return max(0.0, middle - half), min(1.0, middle + half)


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    found = _found(estimates)
    panels = _panels(estimates)[:MOST]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = style.canvas(0.3 + (2.6 if columns < 3 or lines < 4 else 1.75) * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (title, members) in zip(grid.ravel(), panels, strict=False):
        axes.plot([0, 100], [0, 100], color=theme.muted, linewidth=1.0)
        for k, student in enumerate(members):
            _curve(axes, student, found[student], k, len(members), estimates, theme)
        axes.set_title(title)
        axes.set(xlim=(0, 102), ylim=(-4, 103))
        axes.set_xticks([0, 50, 100])
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("right (%)")
    for column in range(columns):
        lowest = [row[column] for row in grid if row[column].get_visible()][-1]
        lowest.set_xlabel("confidence (%)")
        lowest.tick_params(axis="x", labelbottom=True)
    style.legend(figure)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """n, seeds, and what is left out."""
    n = [r.n for r in _found(estimates).values()]
    seeds = _facts.seeds_told([len(estimates.run.manifest.seeds)])
    told = f"n = {_facts.span(n)} questions per student, all benchmarks and {seeds} together"
    lost = _facts.unroomy([title for title, _ in _panels(estimates)[MOST:]])
    return [f"{told}; bars do not cover the variation between trainings.", *lost]


def _found(estimates: Estimates) -> dict[str, Reliability]:
    def find() -> dict[str, Reliability]:
        run = estimates.run
        keys = ["student", "seed", "protocol", "id"]
        scores = run.scores[[*keys, "score"]] if run.scores is not None else run.diagnosed  # diagnosed raises Missing first
        frame = run.diagnosed.merge(scores, on=keys, validate="one_to_one").dropna(subset="confidence")
        frame = frame.assign(cluster=frame["protocol"].astype(str) + " " + frame["cluster"].astype(str))
        return {str(s): reliability(rows, estimates.level) for s, rows in frame.groupby("student", sort=False)}

    return estimates.once("reliability", find)


def _panels(estimates: Estimates) -> list[tuple[str, list[str]]]:
    """Given models and plain training together, then one panel per energy."""
    order = [s for s in estimates.run.students if s in _found(estimates)]
    out: dict[str, list[str]] = {}
    for student in order:
        out.setdefault(style.wrapped("+".join(family(student)), 13) or "no energy", []).append(student)
    return list(out.items())


def _curve(
    axes: Axes, student: str, found: Reliability, place: int, many: int, estimates: Estimates, theme: style.Theme
) -> None:
    own = style.look(student, estimates.run.students, theme)
    label = student.partition("@")[2] if "+" in student else student if not family(student) else "energy alone"
    color = {"teacher": theme.cycle[4], "base": theme.cycle[5]}.get(student, own.color)
    x, y = 100.0 * found.confidence, 100.0 * found.right
    shift = 1.2 * (place - (many - 1) / 2)  # bars side by side
    axes.plot(
        x + shift, y, color=color, linestyle=own.dash, linewidth=1.3, marker=own.marker, markersize=style.size(own.marker, 5.0),
        markeredgecolor=theme.paper, markeredgewidth=0.6, label=label,
    )  # fmt: skip
    axes.vlines(x + shift, 100.0 * found.low, 100.0 * found.high, color=color, linewidth=1.6, alpha=0.8)
    edges = np.linspace(0.0, 100.0, BINS + 1)
    axes.stairs(-4.0 + 25.0 * found.shares, edges, baseline=-4.0, color=color, linewidth=1.0, alpha=0.8)
