"""Tables: a layout in, labelled cells with intervals out. One more table is one more file in ``reports/layouts/``.

A layout is a YAML file, or a Python module where a table shows what no measure of :mod:`reports.measures` is: it defines
``TITLE``, ``CAPTION``, ``ORDER`` and ``build(name, estimates) -> Table``, which raises :class:`reports.frames.Missing` (or
``Irrelevant``) with a sentence where the run lacks what it shows. Its name has ``-`` where the module's has ``_``.
"""

from __future__ import annotations

import fnmatch
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pydantic

from harness.base import Strict, UserError, read_yaml, unknown
from reports.cells import Cell as Cell
from reports.cells import Column as Column
from reports.cells import Row as Row
from reports.cells import Table as Table
from reports.frames import Irrelevant, Missing, Run, family, weighting
from reports.measures import Estimates, Measure, measure
from reports.notes import DASH, table_notes
from reports.statistics import Difference, Interval
from tasks.catalogue import Protocol

FOLDER = Path(__file__).parent / "layouts"


class Layout(Strict):
    """The schema of ``reports/layouts/NAME.yaml``.

    Attributes:
        title, caption: plain text; what is said of n, seeds, intervals and the miniature suite is added to them.
        order: position in the report, low first.
        columns: ``protocols``: one column per protocol of the run; ``measures``: one per measure, mean over protocols.
        measures: names in :data:`reports.measures.MEASURES`; with ``columns: protocols`` exactly one.
        students: globs over student names, in the order in which the rows stand; given models are ``teacher``, ``base``.
        minus: what each student is compared with, paired: ``"@fixed"`` (the recipe of the same channels with that
            weighting) or a student's name. Null for plain values. A student is never compared with itself.
        references: rows for random guessing and for the best constant answer, where scores are shown.
        mark: mark the best student of each column and all that are not resolved from it (values), or every resolved
            cell (differences).
        mean: add a last column with the mean over the protocols, where there are several; of scores, the mean of the numbers
            in percent of their range.
    """

    title: str
    caption: str
    order: int
    columns: Literal["protocols", "measures"] = "protocols"
    measures: tuple[str, ...]
    students: tuple[str, ...] = ("*",)
    minus: str | None = None
    references: tuple[Literal["chance", "constant"], ...] = ()
    mark: bool = True
    mean: bool = False

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Layout:
        for name in self.measures:
            measure(name)
        if self.columns == "protocols" and len(self.measures) != 1:
            raise ValueError(f"columns: protocols shows one measure, {len(self.measures)} are given")
        if "score" in self.measures and self.columns == "measures":
            raise ValueError("scores have a unit per benchmark; show them with columns: protocols")
        if self.references and self.measures != ("score",):
            raise ValueError("references exist for scores only")
        return self


# ---- layouts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Computed:
    """A layout that is a module; see the top of this file."""

    title: str
    caption: str
    order: int
    build: Callable[[str, Estimates], Table]


def layouts(names: Sequence[str] | None = None) -> dict[str, Layout | Computed]:
    """Read the layouts called ``names`` (default: all that are in the folder), in the order in which they stand."""
    files = [*sorted(FOLDER.glob("*.yaml")), *(p for p in sorted(FOLDER.glob("*.py")) if not p.name.startswith("_"))]
    known = {path.stem.replace("_", "-"): path for path in files}
    for name in names or ():
        if name not in known:
            raise unknown("layout", name, known)
    read = {name: _read(known[name]) for name in (names or known)}
    return dict(sorted(read.items(), key=lambda item: (item[1].order, item[0])))


def _read(path: Path) -> Layout | Computed:
    if path.suffix == ".yaml":
        return read_yaml(path, Layout)
    code = importlib.import_module(f"reports.layouts.{path.stem}")
    lost = [attribute for attribute in ("TITLE", "CAPTION", "ORDER", "build") if not hasattr(code, attribute)]
    if lost:
        raise UserError(f"{path}: a layout in Python needs {', '.join(lost)}")
    return Computed(code.TITLE, code.CAPTION, code.ORDER, code.build)


# ---- building --------------------------------------------------------------------------------------------------------------


def build(name: str, layout: Layout | Computed, estimates: Estimates) -> Table:
    """Fill a layout from a run.

    Raises:
        Missing: where the run holds nothing that the table shows; the sentence is printed in its place.
        Irrelevant: where the run's students leave nothing to compare, or what the table shows does not concern the run.
    """
    if isinstance(layout, Computed):
        return layout.build(name, estimates)
    run = estimates.run
    if not run.protocols:
        raise Missing("The run names no protocol.")
    if any(m != "score" for m in layout.measures):
        run.diagnosed  # noqa: B018  the property raises Missing before every cell would
    columns = _columns(layout, estimates)
    students = select(layout.students, run.students)
    rows = [r for r in (_row(s, layout, columns, estimates) for s in students) if r is not None]
    if not rows:
        raise Missing(_nothing(layout, run))
    for level in reversed(layout.references):
        rows.insert(0, _reference(level, columns, run))
    title = titled(layout.title, run)
    notes = table_notes(layout, columns, rows, estimates)
    return Table(name, title, layout.caption, tuple(notes), tuple(columns), tuple(rows), layout.minus is not None)


def titled(title: str, run: Run) -> str:
    """Add to a title what must be said of the questions."""
    return title + (f" ({run.suite})" if run.suite else "")


def _nothing(layout: Layout, run: Run) -> str:
    """The sentence that stands where a table without rows would."""
    if run.scores is None:
        return "The run holds no scores.parquet yet."
    if layout.minus is not None:
        raise Irrelevant(f"The run holds no pair to compare: no student beside its {layout.minus}.")
    return "The run holds no number for this table."


def select(globs: Sequence[str], students: Sequence[str]) -> list[str]:
    """Return the students that match, in the order of the globs and then of the run."""
    chosen: dict[str, None] = {}
    for pattern in globs:
        chosen.update(dict.fromkeys(s for s in students if fnmatch.fnmatchcase(s, pattern)))
    return list(chosen)


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
    columns = [Column(p.title, _size(p, run, kind, name), kind, name, p) for p in run.protocols]
    if layout.mean and len(run.protocols) > 1:
        label, unit = ("Average", "% of range") if name == "score" else ("Mean", kind.unit)
        columns.append(Column(label, f"{unit} (mean of {len(run.protocols)})", kind, name, None))
    return columns


def _size(protocol: Protocol, run: Run, kind: Measure, name: str) -> str:
    """What stands under a column's name: the unit and how many questions in how many clusters."""
    unit = {"percent": "%", "points": "points"}[protocol.unit] if name == "score" else kind.unit
    rows = None if run.scores is None else run.scores[run.scores["protocol"] == protocol.name]
    if rows is None or rows.empty:
        return f"{unit}, not scored"
    return f"{unit}, n = {rows['id'].nunique():,} ({rows['cluster'].nunique():,} {_plural(protocol.cluster)})"


def _plural(word: str) -> str:
    return word if word.endswith("s") else f"{word}s"


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
    students = [s for s in select(layout.students, estimates.run.students) if estimates.run.kinds.get(s) == "student"]
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
