"""What each student cost: seconds, peak memory, how often the teacher looked at a sample."""

from __future__ import annotations

import statistics
from typing import Any

from reports.frames import Irrelevant, Missing
from reports.measures import Estimates, Measure
from reports.notes import DASH
from reports.tables import Cell, Column, Row, Table, titled

TITLE = "What each student cost"
CAPTION = "One training each, median over seeds: wall time, peak memory, and passes of samples through student and teacher."
ORDER = 65

#: name in cost.json -> label, unit, factor, decimals.
_SHOWN = {
    "seconds": ("Time", "s", 1.0, 1),
    "peak_memory_bytes": ("Peak memory", "GiB", 2.0**-30, 2),
    "samples_seen": ("Student passes", "samples", 1.0, 0),
    "teacher_passes_own": ("Teacher passes, own", "samples", 1.0, 0),
    "teacher_passes_shared": ("Teacher passes, shared", "samples", 1.0, 0),
}


def build(name: str, estimates: Estimates) -> Table:
    """Make the table; :class:`Missing` where no training of the run left its cost."""
    run = estimates.run
    found = {s: run.costs(s) for s in run.manifest.students}
    if not found:
        raise Irrelevant("Nothing was trained in this run.")
    if not any(found.values()):
        raise Missing("The run holds no cost.json: its students were trained by a version that did not record their cost.")
    columns = [
        Column(label, unit, Measure(label, unit, 1.0, places, None, label), key, None, "one training")
        for key, (label, unit, _, places) in _SHOWN.items()
    ]
    rows = [
        Row(student, None, "student", str(len(costs)) if costs else DASH, tuple(_cell(key, costs) for key in _SHOWN))
        for student, costs in found.items()
    ]
    told = sorted({str(c.get("memory")) for costs in found.values() for c in costs if c.get("memory")})
    notes = [
        "Measured, not sampled: no interval. Students that train side by side share the processor, so times compare roughly.",
        "Teacher passes, shared: samples that the teacher looked at once, for all students together; own: for this student"
        " alone, where an energy reads more of the teacher than its cached signal holds. Repeats are counted.",
    ]
    notes += [f"Peak memory: {'; '.join(told)}."] if told else []
    notes += [f"{DASH}: not recorded."] if any(c is None for row in rows for c in row.cells) else []
    return Table(name, titled(TITLE, run), CAPTION, tuple(notes), tuple(columns), tuple(rows), False)


def _cell(key: str, costs: list[dict[str, Any]]) -> Cell | None:
    values = [c[key] for c in costs if c[key] is not None]
    _, _, factor, places = _SHOWN[key]
    return Cell(factor * statistics.median(values), None, None, places) if values else None
