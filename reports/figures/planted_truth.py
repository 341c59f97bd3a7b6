"""The planted truth in one panel: gap recovered, weights where the teacher is blind, correlations, what entropy tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import _facts, style
from reports.frames import weighting
from reports.measures import Estimates
from reports.planted import ALL, Entry, Planted, Weights, planted
from reports.statistics import Interval

TITLE = "Planted truth: does a weighting do what it says?"
CAPTION = (
    "Bars: 95 % intervals. a: share of the way from plain cross-entropy (0) to the oracle (1) that a student goes, mean "
    "over the benchmarks; small ticks are single seeds where there are several; hollow without a bar where the oracle is "
    "not resolved from cross-entropy. b: weight β late in training, median and middle half of the samples; one weight for "
    "all is one mark, and weights of zero are numbers (healthy / blind). c: Spearman's rank correlation of β with a blind "
    "teacher and, where the teacher is healthy, with a wrong label; below 0 is a smaller weight there. d: "
    "probability that a sample with a blind teacher has the larger teacher entropy, or the smaller β, than one with a healthy "
    "teacher: 0.5 tells nothing. A weight computed without the label cannot find wrong labels, and a higher share recovered is "
    "no proof that blind samples were found."
)
ORDER = 1

#: Shares outside are drawn as arrows at the edge: a small gap can make them large.
_SPAN = (-1.0, 1.75)


def draw(estimates: Estimates, theme: style.Theme) -> Figure:
    """Draw the figure; see the module's CAPTION."""
    found = planted(estimates)
    shown = [e for e in found.entries if e.weights or (e.shares and e.student != "ce")]
    told = [(e, w) for e in shown for w in e.weights if w.tells_blind and weighting(e.student).partition("@")[0] != "oracle"]
    names = [e.student for e in shown]
    places = [p for p in (ALL, *found.benchmarks) if p in found.entropy_blind]
    heights = [
        1.55 + style.row_height(names, 0.4) * len(shown),
        *([1.3 + 0.24 * len(told) + 0.42 * len(places)] if places else []),
    ]
    figure = style.canvas(sum(heights))
    upper, *lower = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    grid = upper.subplots(1, 3, sharey=True, width_ratios=[1.15, 1.0, 1.0])
    _shares(grid[0], shown, theme)
    _betas(grid[1], shown, theme)
    _ranks(grid[2], shown, theme)
    style.name_rows(grid[0], names, theme, head=0.55)
    for axes, title in zip(grid, ("a  Gap recovered", "b  Weight β", "c  Correlation"), strict=True):
        axes.set_title(title)
    for axes in grid[1:]:
        style.stripe(axes, len(shown), theme)
    style.legend(upper, most=3)
    for sub in lower:
        _detection(sub.subplots(1, 1), places, found, told, estimates, theme)
        style.legend(sub, most=2)
    return figure


def notes(estimates: Estimates) -> list[str]:
    """Numbers of samples and the limits of this panel."""
    c = planted(estimates).counts
    seeds = _facts.seeds_told([len(estimates.run.manifest.seeds)])
    return [
        f"n = {c['blind']:,} blind and {c['healthy']:,} healthy samples with an image, {c['noisy']:,} of the healthy with a "
        f"wrong label; {seeds} per student. The faults were drawn once, under one teacher."
    ]


def _shares(axes: Axes, shown: Sequence[Entry], theme: style.Theme) -> None:
    looks = (("nll", "NLL", 0.19, theme.cycle[2], "o"), ("accuracy", "accuracy", -0.13, theme.cycle[4], "s"))
    for at, word in ((0.0, "ce"), (1.0, "oracle")):
        axes.axvline(at, color=theme.muted, linewidth=1.0)
        axes.text(at, 0.82, word, ha="center", va="center", backgroundcolor=theme.paper)
    for k, entry in enumerate(shown):
        if weighting(entry.student).partition("@")[0] == "oracle":
            continue  # it is the line
        for name, _, shift, color, marker in looks:
            share = entry.shares.get(name)
            if share is not None:
                _mark(axes, share.interval, share.by_seed, -k + shift, color, marker, theme)
    for _, label, _, color, marker in looks:
        axes.plot([], [], marker, color=color, markersize=6.5, linestyle="none", label=label)
    ends = [x for e in shown for s in e.shares.values() for x in (s.interval.low, s.interval.high) if x is not None]
    low, high = min([0.0, *ends]), max([1.0, *ends])
    axes.set_xlim(max(low - 0.12, _SPAN[0]), min(high + 0.12, _SPAN[1]))
    axes.set_xlabel("share of the gap")


def _mark(axes: Axes, e: Interval, by_seed: Sequence[float], y: float, color: str, marker: str, theme: style.Theme) -> None:
    """A dot with its bar, seeds as ticks below; hollow without a bar; an arrow where it lies outside."""
    if e.low is not None and e.high is not None:
        axes.plot([e.low, e.high], [y, y], color=color, linewidth=2.2, solid_capstyle="butt")
    inside = _SPAN[0] <= e.value <= _SPAN[1]
    x = float(np.clip(e.value, *_SPAN))
    kind = marker if inside else (">" if e.value > 0 else "<")
    face = color if e.low is not None else theme.paper
    edge = theme.paper if e.low is not None else color
    axes.plot([x], [y], kind, markersize=6.5, color=face, markeredgecolor=edge, markeredgewidth=0.7, clip_on=inside)
    if len(by_seed) > 1:
        axes.plot(by_seed, [y - 0.12] * len(by_seed), "|", markersize=5, color=color, markeredgewidth=0.8)


def _lines(shown: Sequence[Entry]) -> list[tuple[float, Weights]]:
    """Where each student's weights stand: in its row, side by side where several channels are weighed."""
    return [
        (-k + 0.5 * (len(e.weights) - 1 - 2 * j) / (2 * len(e.weights)), w)
        for k, e in enumerate(shown)
        for j, w in enumerate(e.weights)
    ]


def _betas(axes: Axes, shown: Sequence[Entry], theme: style.Theme) -> None:
    """Quartiles on a logarithmic axis; a weight of zero has no place there and is said in numbers, healthy / blind."""
    looks = (("healthy", "healthy teacher", 0.15, theme.cycle[0], "o"), ("blind", "blind teacher", -0.15, theme.cycle[1], "s"))
    drawn = False
    for y, weights in _lines(shown):
        quantiles = [getattr(weights, name) for name, *_ in looks]
        if min(min(q) for q in quantiles) <= 0:
            middle = " / ".join(f"{q[1]:g}" for q in quantiles)
            place = axes.get_yaxis_transform()
            axes.text(0.5, y, middle, transform=place, ha="center", va="center")
            continue
        drawn = True
        if not weights.per_sample:
            axes.plot([quantiles[0][1]], [y], "d", markersize=7, color=theme.ink, markeredgecolor=theme.paper)
            continue
        for (_, _, shift, color, marker), q in zip(looks, quantiles, strict=True):
            axes.plot([q[0], q[2]], [y + shift] * 2, color=color, linewidth=4.0, alpha=0.6, solid_capstyle="butt")
            axes.plot([q[1]], [y + shift], marker, markersize=6.5, color=color, markeredgecolor=theme.paper)
    for _, label, _, color, marker in looks:
        axes.plot([], [], marker, color=color, markersize=6.5, linestyle="none", label=label)
    if drawn:
        style.plain_log(axes, "x")
    axes.set_xlabel("β (ratio to ce)")


def _ranks(axes: Axes, shown: Sequence[Entry], theme: style.Theme) -> None:
    axes.axvline(0.0, color=theme.muted, linewidth=1.0)
    looks = (("blindness", "blind teacher", 0.15, theme.cycle[1], "s"), ("noise", "wrong label", -0.15, theme.cycle[6], "D"))
    for y, weights in _lines(shown):
        for name, _, shift, color, marker in looks:
            e: Interval | None = getattr(weights, name)
            if e is not None:
                _mark(axes, e, (), y + shift, color, marker, theme)
    for _, label, _, color, marker in looks:
        axes.plot([], [], marker, color=color, markersize=6.5, linestyle="none", label=label)
    axes.set_xlabel("Spearman's ρ")
    axes.set_xlim(-1.1, max(0.35, axes.get_xlim()[1]))


def _detection(
    axes: Axes, places: Sequence[str], found: Planted, told: Sequence[tuple[Entry, Weights]], estimates: Estimates,
    theme: style.Theme,
) -> None:  # fmt: skip
    titles = {p.benchmark: style.short(p) for p in estimates.run.protocols}
    series = [("teacher entropy", found.entropy_blind, theme.ink, "o")]
    for entry, weights in told:
        look = style.look(entry.student, estimates.run.students, theme)
        name = f"β of {entry.student}" + (f" ({weights.channel})" if len(entry.weights) > 1 else "")
        series.append((name, weights.tells_blind, look.color, look.marker))
    axes.axvline(0.5, color=theme.muted, linewidth=1.0)
    width = 0.75 / len(series)
    for j, (name, results, color, marker) in enumerate(series):
        at = [(-k - (j - (len(series) - 1) / 2) * width, results[p]) for k, p in enumerate(places) if p in results]
        for y, e in at:
            if e.low is not None and e.high is not None:
                axes.plot([e.low, e.high], [y, y], color=color, linewidth=1.8, solid_capstyle="butt")
        axes.plot(
            [e.value for _, e in at], [y for y, _ in at], marker, color=color, markersize=style.size(marker, 6.0), label=name,
            linestyle="none", markeredgecolor=theme.paper, markeredgewidth=0.6,
        )  # fmt: skip
    style.name_rows(axes, ["all" if p == ALL else titles.get(p, p) for p in places], theme)
    axes.set_xlabel("AUC for a blind teacher")
    axes.set_title("d  What would have told a blind teacher?")
