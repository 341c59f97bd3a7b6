"""Tables: a layout in, labelled cells with intervals out. One more table is one more file in ``reports/layouts/``.

A layout is a YAML file, or a Python module where a table shows what no measure of :mod:`reports.measures` is: it defines
``TITLE``, ``CAPTION``, ``ORDER`` and ``build(name, estimates) -> Table``, which raises :class:`reports.frames.Missing` (or
``Irrelevant``) with a sentence where the run lacks what it shows. Its name has ``-`` where the module's has ``_``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from reports import paper_tables, provenance
from reports.cells import Cell as Cell
from reports.cells import Column as Column
from reports.cells import Row as Row
from reports.cells import Table as Table
from reports.frames import Irrelevant, Missing, Run, family, weighting
from reports.layout import Computed as Computed
from reports.layout import Layout as Layout
from reports.layout import layouts as layouts
from reports.layout import picked, select
from reports.measures import Estimates, measure
from reports.notes import DASH, size, table_notes
from reports.notes import titled as titled
from reports.statistics import Difference, Interval
from tasks.catalogue import Protocol

# ---- building --------------------------------------------------------------------------------------------------------------


def build(name: str, layout: Layout | Computed, estimates: Estimates) -> Table:
    """Fill a layout from a run; every row knows its run, and the notes end with where the numbers come from.

    Raises:
        Missing: where the run holds nothing that the table shows; the sentence is printed in its place.
        Irrelevant: where the run's students leave nothing to compare, or what the table shows does not concern the run.
    """
    if isinstance(layout, Computed):
        table = layout.build(name, estimates)
    elif layout.paper is not None:
        table = paper_tables.build(name, layout, estimates)
    else:
        table = _build(name, layout, estimates)
    origin = provenance.origin(estimates.run)
    rows = tuple(replace(row, run=origin.run) for row in table.rows)
    return replace(table, rows=rows, notes=(*table.notes, origin.sentence), origins=(origin,))


def _build(name: str, layout: Layout, estimates: Estimates) -> Table:
    run = estimates.run
    if not run.protocols:
        raise Missing("The run names no protocol.")
    if run.scores is None:
        raise Missing("The run holds no scores.parquet yet.")
    if any(m != "score" for m in layout.measures):
        run.diagnosed  # noqa: B018  the property raises Missing before every cell would
    columns = _columns(layout, estimates)
    if not columns:
        raise Irrelevant(f"The run was scored under no protocol that matches {', '.join(layout.protocols)}.")
    rows = [r for r in (_row(s, layout, columns, estimates) for s in picked(layout, run)) if r is not None]
    if not rows and layout.minus is not None:
        raise Irrelevant(f"The run holds no pair to compare: no student beside its {layout.minus}.")
    if not rows:
        raise Missing("The run holds no number for this table.")
    for level in reversed(layout.references):
        rows.insert(0, _reference(level, columns, run))
    title = titled(layout.title, run)
    notes = table_notes(layout, columns, rows, estimates)
    return Table(name, title, layout.caption, tuple(notes), tuple(columns), tuple(rows), layout.minus is not None)


def counterpart(student: str, minus: str, students: Sequence[str]) -> str | None:
    """Return whom ``student`` is compared with, or None if there is nobody (or only itself).

    ``@fixed`` stands for the recipe of the same channels with that weighting.
    """
    if minus.startswith("@"):
        if not weighting(student) or not family(student):
            return None
        other = student.partition("@")[0] + minus
    else:
        other = minus
    return other if other in students and other != student else None


def _columns(layout: Layout, estimates: Estimates) -> list[Column]:
    run = estimates.run
    if layout.columns == "measures":
        picked = [(measure(name), name) for name in layout.measures]
        return [Column(m.label, f"{m.unit}, mean of {len(run.protocols)}", m, name, None) for m, name in picked]
    name = layout.measures[0]
    kind = measure(name)
    shown = select(layout.protocols, [p.name for p in run.protocols])
    columns = [Column(p.title, size(p, run, kind, name), kind, name, p) for p in run.protocols if p.name in shown]
    if layout.mean and len(run.protocols) > 1:
        label, unit = ("Average", "% of range") if name == "score" else ("Mean", kind.unit)
        columns.append(Column(label, f"{unit} (mean of {len(run.protocols)})", kind, name, None))
    return columns


def _row(student: str, layout: Layout, columns: Sequence[Column], estimates: Estimates) -> Row | None:
    run = estimates.run
    kind = run.kinds.get(student, "student")
    if layout.minus is None:
        cells = tuple(_value(student, c, layout, estimates) for c in columns)
        label, seeds = student, {e.seeds for e in (c.estimate for c in cells if c) if isinstance(e, Interval)}
        counted = DASH if kind != "student" or not seeds else "/".join(str(s) for s in sorted(seeds))
        # A student that the preset names but nothing scored still gets its row: a dash says more than an absence.
        return Row(label, None, kind, counted, cells)
    other = counterpart(student, layout.minus, run.students)
    if kind != "student" or other is None:
        return None
    cells = tuple(_difference(student, other, c, layout, estimates) for c in columns)
    pairs = {e.seeds for e in (c.estimate for c in cells if c) if isinstance(e, Difference)}
    counted = "/".join(sorted({f"{a}" if a == b else f"{a}:{b}" for a, b in pairs})) or DASH
    return Row(student, other, "difference", counted, cells)


def _value(student: str, column: Column, layout: Layout, estimates: Estimates) -> Cell | None:
    if not estimates.has(student, column.name, column.protocol):
        return None
    e = estimates.interval(student, column.name, column.protocol)
    k = column.measure.scale
    ends = [None if x is None else k * x for x in (e.low, e.high)]
    students = [s for s in picked(layout, estimates.run) if estimates.run.kinds.get(s) == "student"]
    marked = layout.mark and student in estimates.leaders(students, column.name, column.protocol)
    return Cell(k * e.value, ends[0], ends[1], column.measure.decimals, marked=marked, note=e.note, estimate=e)


def _difference(student: str, other: str, column: Column, layout: Layout, estimates: Estimates) -> Cell | None:
    if not all(estimates.has(s, column.name, column.protocol) for s in (student, other)):
        return None
    d = estimates.difference(student, other, column.name, column.protocol)
    k = column.measure.scale
    marked = layout.mark and d.resolved
    worse = marked and column.measure.higher_is_better == (d.value < 0)
    decimals = column.measure.decimals
    shown = Cell(k * d.value, k * d.low, k * d.high, decimals, signed=True, marked=marked, worse=worse, note=d.note, estimate=d)
    return replace(shown, detail=tuple(_detail(d, column, shown)))


def _detail(d: Difference, column: Column, cell: Cell) -> Iterator[str]:
    """Discordant questions, and the smallest difference that this many questions could have shown."""
    if column.name == "score":
        yield f"+{d.above} −{d.below}"
    if d.detectable is not None:
        yield f"detects {replace(cell, signed=False).number(column.measure.scale * d.detectable)}"


def _reference(level: str, columns: Sequence[Column], run: Run) -> Row:
    cells: list[Cell | None] = []
    for column in columns:
        if column.protocol is None:
            levels = [(_level(level, p, run)[0], p.range[1]) for p in run.protocols]
            known = [100.0 * value / top / len(levels) for value, top in levels if value is not None]
            whole = len(known) == len(levels)
            cells.append(Cell(math.fsum(known), None, None, column.measure.decimals) if whole else None)
            continue
        value, note = _level(level, column.protocol, run)
        cells.append(None if value is None else Cell(value, None, None, column.measure.decimals, note=note))
    label = {"chance": "random guessing", "constant": "best constant answer"}[level]
    return Row(label, None, "reference", DASH, tuple(cells))


def _level(level: str, protocol: Protocol, run: Run) -> tuple[float | None, str | None]:
    """What guessing, or the best constant answer, scores on a protocol, with a note."""
    constant = run.manifest.protocols[protocol.name].constant
    if level == "chance":
        return run.chance(protocol), None
    return (constant.value, f"always {constant.answer!r}") if constant else (None, None)
