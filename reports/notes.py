"""What stands under a table: the suite, how intervals were made and what they leave out, the marks, the caveats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reports.frames import Run
from reports.measures import Estimates

if TYPE_CHECKING:
    from reports.tables import Column, Layout, Row

#: What is printed where there is no number.
DASH = "–"


def table_notes(layout: Layout, columns: Sequence[Column], rows: Sequence[Row], estimates: Estimates) -> list[str]:
    """Return sentences on the statistics, the seeds, the marks, the caveats; the reader needs them beside the numbers."""
    run, percent = estimates.run, f"{100 * estimates.level:g} %"
    methods = {c.estimate.method for row in rows for c in row.cells if c and c.estimate}
    notes = []
    notes.extend(suite_note(run))
    made = " or ".join(sorted(methods - {"none"})) or "none could be made"
    how = f"Brackets: {percent} interval ({made}) for the sampling of questions, {estimates.resamples:,} resamples of clusters"
    notes.append(how + (", the same for both students." if layout.minus else "."))
    notes.append(seeds_note(run))
    if layout.mark and layout.minus is None and any(c.measure.higher_is_better is not None for c in columns):
        notes.append("Bold: the best student of a column and every student not resolved from it by the paired difference.")
    if layout.mark and layout.minus is not None:
        notes.append("Bold: resolved, the interval excludes zero. Comparisons are not corrected for their number.")
    if any(m.name != "score" for m in columns):
        described = {c.measure.label: c.measure.description for c in columns if c.name != "score"}
        notes.append("; ".join(f"{label}: {text}" for label, text in described.items()) + ".")
    if any(c is None for row in rows for c in row.cells):
        notes.append(f"{DASH}: not defined, or not in this run.")
    seen: dict[str, list[str]] = {}
    for row in rows:
        for column, cell in zip(columns, row.cells, strict=True):
            if cell is not None and cell.note and row.kind != "reference":
                seen.setdefault(cell.note, []).append(f"{row.label} on {column.label}")
    notes.extend(f"{_few(where)}: {note}." for note, where in seen.items())
    return notes


def suite_note(run: Run) -> list[str]:
    """Say that unofficial numbers stand alone; nothing for official protocols."""
    return [f"{run.suite.capitalize()}: these numbers must not be put beside published ones."] if run.suite else []


def seeds_note(run: Run) -> str:
    """Say what the intervals do not cover."""
    n = len(run.manifest.seeds)
    if n == 0:
        return "Nothing was trained: given models, each evaluated once by greedy decoding."
    if n == 1:
        return "One seed per student: training variation is unmeasured."
    return f"{n} seeds per student, averaged; intervals do not cover the variation between trainings."


def _few(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
