"""Bars per category of one benchmark, one panel per student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.base import UserError
from reports.figures import _facts, style
from reports.frames import Irrelevant, Missing
from reports.measures import Estimates
from reports.statistics import Floats, Interval, bootstrap_tables, summarise
from tasks.aggregate import ClusterSums
from tasks.catalogue import Protocol

CAPTION = (
    "One panel per student, mean over seeds; bar: the category's own number; line: its 95 % interval, from resampled clusters "
    "of the category (and seeds, where there are several); black tick: {reference}. Categories are small, and intervals wide: "
    "they are shown to be looked at, and are not corrected for their number."
)
#: Panels side by side, and more than this would be too small to read.
_COLUMNS, MOST = 4, 28


@dataclass(frozen=True)
class Found:
    """What is drawn: by student and category, in the order of the rows."""

    protocol: Protocol
    categories: list[str]
    results: dict[str, dict[str, Interval]]


def found(estimates: Estimates, benchmark: str) -> Found:
    """Return every student's number per category.

    Raises:
        Irrelevant: where the run has no such benchmark. Missing: where its questions are in one category, or not scored.
    """
    return estimates.once(f"categories {benchmark}", lambda: _find(estimates, benchmark))


def _find(estimates: Estimates, benchmark: str) -> Found:
    run = estimates.run
    protocol = next((p for p in run.protocols if p.benchmark == benchmark), None)
    if protocol is None:
        raise Irrelevant(f"The run has no {benchmark}.")
    scored = {s: rows for s, rows in run.scores_by_student.items() if (rows["protocol"] == protocol.name).any()}
    if not scored:
        raise Missing(f"No student has scores on {protocol.name}.")
    parts = {s: rows[rows["protocol"] == protocol.name] for s, rows in scored.items()}
    categories = list(dict.fromkeys(str(g) for rows in parts.values() for g in rows["group"].unique() if g))
    if len(categories) < 2:
        raise Missing(f"The questions of {protocol.name} are in one category.")
    results = {s: _intervals(s, parts[s], protocol, categories, estimates) for s in run.students if s in parts}
    return Found(protocol, categories, results)


def _intervals(
    student: str, rows: pd.DataFrame, protocol: Protocol, categories: Sequence[str], estimates: Estimates
) -> dict[str, Interval]:
    """Resample each category's clusters alone, from the sums that the benchmark's own number is made of.

    Raises:
        UserError: where a cluster lies in several categories.
    """
    sample = estimates.sample(student, "score", protocol)
    places = rows[["cluster", "group"]].drop_duplicates()
    torn = places["cluster"].duplicated()
    if torn.any():
        raise UserError(f"{protocol.name}: cluster {places[torn]['cluster'].iloc[0]!r} lies in more than one category")
    category_of = dict(zip(places["cluster"].astype(str), places["group"], strict=True))
    group_of = rows.drop_duplicates("id").set_index("id")["group"]
    own = np.array([category_of[c] for c in sample.tables[0].clusters])
    asked = group_of.reindex(sample.questions.index).to_numpy()
    out = {}
    for category in categories:
        mask = own == category
        if mask.any():
            tables = {k: _part(t, mask, protocol) for k, t in zip(sample.labels, sample.tables, strict=True)}
            questions = sample.questions[asked == category]
            made = bootstrap_tables(tables, questions, protocol.name, estimates.resamples, estimates.seed)
            out[category] = summarise(made, estimates.level)
    return out


def _part(table: ClusterSums, mask: NDArray[np.bool_], protocol: Protocol) -> ClusterSums:
    """The sums of some clusters; of MME's, which stand side by side, those of the one category that the clusters are in."""
    names = [c for c, kept in zip(table.clusters, mask, strict=True) if kept]
    strata = table.strata[mask]
    if protocol.aggregation != "mme":
        return ClusterSums(names, table.sums[mask], table.value, strata)
    sums = table.sums.reshape(len(mask), -1, 3)[mask, strata[0]]
    return ClusterSums(names, sums, _points, strata)


def _points(total: Floats) -> Floats:
    """MME's points of one category, 100 * accuracy + 100 * accuracy+, from [..., right, both right, pairs]."""
    return np.asarray((50.0 * total[..., 0] + 100.0 * total[..., 1]) / total[..., 2])


def draw(estimates: Estimates, theme: style.Theme, benchmark: str, top: float, unit: str) -> Figure:
    """Draw the panels; ``top``: the largest number of a category; ``unit``: of the axis."""
    what = found(estimates, benchmark)
    students = list(what.results)[:MOST]
    reference = what.results.get(_reference(what))
    titles = [style.wrapped(student, 11) for student in students]
    columns = min(_COLUMNS, len(students))
    lines = -(-len(students) // columns)
    head = 0.15 + 0.19 * max(1 + title.count("\n") for title in titles)
    figure = style.canvas(0.45 + lines * (head + 0.22 * len(what.categories)))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, student, title in zip(grid.ravel(), students, titles, strict=False):
        own = style.look(student, estimates.run.students, theme)
        _panel(axes, what, student, own, reference, theme)
        axes.set_title(title, fontweight="normal")
        axes.set_xlim(0.0, 1.04 * top)
        axes.set_xticks([0.0, top / 2, top])
    for axes in grid.ravel()[len(students) :]:
        axes.set_visible(False)
    grid[0][0].set_yticks([-k for k in range(len(what.categories))], [label(c) for c in what.categories])
    grid[0][0].set_ylim(-len(what.categories) + 0.4, 0.6)
    for column in range(columns):
        lowest = [row[column] for row in grid if row[column].get_visible()]
        if lowest:
            lowest[-1].set_xlabel(unit)
            lowest[-1].tick_params(axis="x", labelbottom=True)
    return figure


def notes(estimates: Estimates, benchmark: str) -> list[str]:
    """n, seeds, intervals of the categories; what is left out."""
    what = found(estimates, benchmark)
    results = [e for per in what.results.values() for e in per.values()]
    bare = sorted({c for per in what.results.values() for c, e in per.items() if e.low is None})
    out = [f"Per category: {_facts.questions(results, estimates.level)}"]
    out += [f"Without a line where no interval can be given: {', '.join(bare)}."] if bare else []
    cut = [c for c in what.categories if label(c).endswith("…")]
    out += [f"Names cut short: {', '.join(cut)}."] if cut else []
    return out + _facts.unroomy(list(what.results)[MOST:])


def label(category: str) -> str:
    """Return a category's name as an axis can hold it: what comes after a colon, without underscores, at most 14 letters."""
    name = category.rpartition(": ")[2].replace("_", " ")
    return name if len(name) <= 14 else name[:13].rstrip() + "…"


def _reference(what: Found) -> str:
    return "ce" if "ce" in what.results else "teacher"


def _panel(
    axes: Axes, what: Found, student: str, own: style.Look, reference: dict[str, Interval] | None, theme: style.Theme
) -> None:
    found = [(-k, what.results[student].get(c), c) for k, c in enumerate(what.categories)]
    drawn = [(y, e) for y, e, _ in found if e is not None]
    axes.barh([y for y, _ in drawn], [e.value for _, e in drawn], height=0.7, color=own.color, alpha=0.55, linewidth=0)
    spans = [(y, e.low, e.high) for y, e in drawn if e.low is not None and e.high is not None]
    ys, lows, highs = ([span[k] for span in spans] for k in range(3))
    axes.hlines(ys, lows, highs, color=theme.ink, linewidth=1.4)
    ticks = [(y, reference[c].value) for y, _, c in found if reference is not None and c in reference]
    axes.vlines(
        [x for _, x in ticks], [y - 0.42 for y, _ in ticks], [y + 0.42 for y, _ in ticks], color=theme.ink, linewidth=2.2
    )
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
