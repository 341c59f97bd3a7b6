"""The paper's tables: each of its students, what this run measured, what sources report, and the difference."""

from __future__ import annotations

import fnmatch
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from reports import costs
from reports.cells import Cell, Column, Reported, Row, Table, What
from reports.frames import Irrelevant, Missing, Run, family, weighting
from reports.layout import Layout, picked
from reports.measures import Estimates, Measure, measure
from reports.notes import DASH, size, titled
from reports.paper_facts import EFFICIENCY, Fact, Footnotes, in_cell, of_table
from reports.paper_notes import notes
from reports.statistics import Interval, combine, summarise
from tasks import averages, catalogue
from tasks.catalogue import Protocol

#: Weightings in the order in which the paper's tables have them; others follow.
_WEIGHTINGS = ("", "manual", "fixed", "task", "instance")
_RECORDED = {"iterations/s": costs.speeds, "GB": costs.memories, "parameters": costs.weighting_shares}


@dataclass(frozen=True)
class Place:
    """One measure of the paper's table: what it is called there, and where this run holds it.

    Attributes:
        name: the paper's measure; column: how the measured number is headed.
        protocol: whose scores are shown; None for a mean over protocols and for what a training cost.
    """

    name: str
    column: Column
    protocol: Protocol | None


def build(name: str, layout: Layout, estimates: Estimates) -> Table:
    """Make the table.

    Where the run's numbers must not stand beside published ones, the rows are the same, with measured numbers only.

    Raises:
        Irrelevant: nothing was trained, and no given model of the table was evaluated.
        Missing: the run holds none of the table's numbers and shows no reported ones either.
    """
    assert layout.paper is not None
    run = estimates.run
    found = of_table(layout.paper)
    given = [f.student for f in found if f.kind == "given" and f.student in run.kinds]
    if not run.manifest.students and not given:
        raise Irrelevant("Nothing was trained in this run.")
    alone = _alone(layout, run)
    places = _places(layout, run)
    students = _students(layout, run, found)
    footnotes = Footnotes()
    measured = {(s, p.name): _measured(s, p, estimates) for s in students for p in places}
    if alone and not any(measured.values()):
        named = ", ".join(f"`{s}`" for s in students)
        raise Missing(f"This run holds none of the numbers of this table, whose students are {named}.")
    rows = [row for s in students for row in _rows(s, layout, places, found, measured, footnotes, alone is not None, run)]
    columns = tuple(c for place in places for c in _columns(place, layout, alone is not None))
    said = notes(layout, found, measured.values(), rows, footnotes, estimates, alone)
    title = layout.title if alone is None else titled(layout.title, run)
    return Table(name, title, layout.caption, tuple(said), columns, tuple(rows), False)


def _alone(layout: Layout, run: Run) -> str | None:
    """Why nothing reported may stand beside this run's numbers; None where it may."""
    if any(p.name.endswith("@miniature") for p in run.protocols):
        return "the miniature suite's questions, models and data are others than the paper's under the same names"
    if run.manifest.limit is not None:
        return f"every benchmark was cut to its first {run.manifest.limit} clusters"
    if run.partial:
        return f"only part of {', '.join(run.partial)} was asked"
    base = str(run.manifest.models.get("base", "not recorded"))
    if run.manifest.students and not fnmatch.fnmatchcase(base.lower(), layout.base.lower()):
        return f"the paper's students are others: this run's start from {base}, which does not match {layout.base}"
    return None


# ---- rows and columns ------------------------------------------------------------------------------------------------------


def _students(layout: Layout, run: Run, found: Sequence[Fact]) -> list[str]:
    """Given models first, then the paper's students and the run's own that the layout picks, energy by energy."""
    given = dict.fromkeys(f.student for f in found if f.kind == "given")
    paper = dict.fromkeys(f.student for f in found if f.student and f.student not in given)
    subtracted = dict.fromkeys(f.minus for f in found if f.minus and f.minus != "ce")
    own = dict.fromkeys(s for s in picked(layout, run) if run.kinds.get(s, "student") == "student")
    every = list({**paper, **subtracted, **own})
    families = list(dict.fromkeys(family(s) for s in every))

    def place(student: str) -> tuple[int, int, int]:
        word = weighting(student)
        known = _WEIGHTINGS.index(word) if word in _WEIGHTINGS else len(_WEIGHTINGS)
        return (-1 if student == "ce" else families.index(family(student))), known, every.index(student)

    return [*given, *sorted(every, key=place)]


def _places(layout: Layout, run: Run) -> list[Place]:
    """Where the run holds each measure of the table; on the miniature suite its own protocols stand in, once each."""
    here = {p.name: p for p in run.protocols}
    miniature = any(name.endswith("@miniature") for name in here)
    out: dict[str, Place] = {}
    for name in layout.measures:
        if name in EFFICIENCY:
            label, unit, decimals = EFFICIENCY[name]
            own = Measure(label, unit, 1.0, decimals, None, label)
            out[name] = Place(name, Column(label, unit, own, name, None, "one training"), None)
        elif name in averages.derived_names():
            title = averages.derived(name).title
            under = f"% of range, mean of {len(here)}" if miniature else "%"
            over = "mean over protocols" if miniature else name
            if not miniature or len(here) > 1:
                out[name] = Place(
                    name, Column("Average" if miniature else title, under, measure("score"), "score", None, over), None
                )
        else:
            stands = f"{name.split('@')[0]}@miniature" if miniature else name
            if not miniature or stands in here:
                protocol = catalogue.protocol(stands)
                under = size(protocol, run, measure("score"), "score")
                column = Column(protocol.title, under, measure("score"), "score", protocol)
                out.setdefault(stands, Place(name, column, protocol))
    return list(out.values())


def _columns(place: Place, layout: Layout, alone: bool) -> Iterable[Column]:
    if alone or layout.beside == "rows":
        yield place.column
        return
    where, unit = place.column.label, place.column.under.split(", ")[0]
    yield replace(place.column, under=f"measured, {place.column.under}")
    yield replace(place.column, label="reported", under=f"{where}, {unit}")
    yield replace(place.column, label="difference", under=f"{where}, {'percentage points' if unit == '%' else unit}")


def _rows(
    student: str,
    layout: Layout,
    places: Sequence[Place],
    found: Sequence[Fact],
    measured: dict[tuple[str, str], Cell | None],
    footnotes: Footnotes,
    alone: bool,
    run: Run,
) -> list[Row]:
    """One row per student, or three where reported numbers and differences stand below the measured ones."""
    kind = run.kinds.get(student) or (
        "external" if any(f.student == student and f.kind == "given" for f in found) else "student"
    )
    own = [measured[student, p.name] for p in places]
    counted = {c.estimate.seeds for c in own if c is not None and isinstance(c.estimate, Interval)}
    seeds = "/".join(str(n) for n in sorted(counted)) if kind == "student" and counted else DASH
    if kind == "student" and not counted and any(own):
        seeds = str(len(run.seed_folders(student)))
    if alone:
        return [Row(student, None, kind, seeds, tuple(own))]
    theirs = [_reported(p, in_cell(found, student, p.name, footnotes)) for p in places]
    apart = [_difference(m, r) for m, r in zip(own, theirs, strict=True)]
    if layout.beside == "columns":
        cells = tuple(c for three in zip(own, theirs, apart, strict=True) for c in three)
        return [Row(student, None, kind, seeds, cells)]
    lines: list[tuple[What, list[Cell | None]]] = [("measured", own), ("reported", theirs), ("measured - reported", apart)]
    kept = [(what, cells) for what, cells in lines if what == "measured" or any(cells)]
    return [
        Row(student, None, kind, seeds if what != "reported" else DASH, tuple(cells), what.replace("-", "−"))
        for what, cells in kept
    ]


# ---- cells -----------------------------------------------------------------------------------------------------------------


def _measured(student: str, place: Place, estimates: Estimates) -> Cell | None:
    if place.name in EFFICIENCY:
        values = _RECORDED[place.name](estimates.run, student)
        return Cell(statistics.median(values), None, None, place.column.measure.decimals) if values else None
    try:
        e = _estimate(student, place, estimates)
    except Missing:
        return None  # a dash: the notes say what it stands for
    return Cell(e.value, e.low, e.high, place.column.measure.decimals, note=e.note, estimate=e)


def _estimate(student: str, place: Place, estimates: Estimates) -> Interval:
    if place.protocol is not None or place.column.over == "mean over protocols":
        return estimates.interval(student, "score", place.protocol)
    made = averages.derived(place.name)
    here = {p.name: p for p in estimates.run.protocols}
    lost = [term for term in made.terms if term not in here]
    if lost:
        raise Missing(f"{place.name} lacks {', '.join(lost)}.")
    parts = [(factor / made.divide, estimates.sample(student, "score", here[term])) for term, factor in made.terms.items()]
    if len({sample.labels for _, sample in parts}) > 1:
        raise Missing(f"{student} was scored with other seeds on one benchmark than on another.")
    return summarise(combine(parts, place.name), estimates.level)


def _reported(place: Place, said: tuple[Reported, ...]) -> Cell | None:
    if not said:
        return None
    first = next((r.value for r in said if r.value is not None), None)
    if first is None:  # words alone sort by the number in them
        first = float(re.findall(r"\d+(?:\.\d+)?", said[0].text)[0])
    return Cell(first, None, None, place.column.measure.decimals, what="reported", reported=said)


def _difference(measured: Cell | None, theirs: Cell | None) -> Cell | None:
    """Measured minus reported; where sources disagree, to the first, and to the others in small print."""
    numbers = [] if theirs is None else [r for r in theirs.reported if r.value is not None]
    if measured is None or not numbers:
        return None
    cells = []
    for r in numbers:
        assert r.value is not None
        value, low, high = (None if x is None else x - r.value for x in (measured.value, measured.low, measured.high))
        assert value is not None
        cells.append(Cell(value, low, high, measured.decimals, signed=True, what="measured - reported", reported=(r,)))
    others = tuple(f"{c.text}{c.reported[0].raised}" + (f" {c.span}" if c.span else "") for c in cells[1:])
    return replace(cells[0], detail=others, reported=tuple(numbers), estimate=measured.estimate)
