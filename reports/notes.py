"""What stands under a table: the suite, how intervals were made and what they leave out, the marks, the caveats."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from reports.frames import Run
from reports.measures import Estimates, Measure
from reports.statistics import Difference
from tasks.catalogue import Protocol

if TYPE_CHECKING:
    from reports.cells import Column, Row
    from reports.layout import Layout

#: What is printed where there is no number.
DASH = "–"


def table_notes(layout: Layout, columns: Sequence[Column], rows: Sequence[Row], estimates: Estimates) -> list[str]:
    """Return sentences on the statistics, the seeds, the marks, the caveats; the reader needs them beside the numbers."""
    run = estimates.run
    estimates_shown = [c.estimate for row in rows for c in row.cells if c and c.estimate]
    notes = []
    notes.extend(suite_note(run))
    how = brackets({e.method for e in estimates_shown}, estimates)
    notes.append(how + (", the same for both students." if layout.minus else "."))
    notes.append(seeds_note(run))
    notes.extend(_variation(columns, rows))
    if layout.mark and layout.minus is None and any(c.measure.higher_is_better is not None for c in columns):
        used = _rivalling(columns, rows, estimates)
        how = f" by the paired difference ({_test(columns, estimates, used)})" if used else ""
        notes.append(f"Bold: the best student of a column and every student not resolved from it{how}.")
    if layout.minus is not None:
        used = {e.test for e in estimates_shown if isinstance(e, Difference)}
        notes.append(f"Bold: resolved ({_test(columns, estimates, used)}).")
        notes.append(_small_print(columns))
    if any(m.name != "score" for m in columns):
        described = {c.measure.label: c.measure.description for c in columns if c.name != "score"}
        notes.append("; ".join(f"{label}: {text}" for label, text in described.items()) + ".")
    if any(c is None for row in rows for c in row.cells):
        notes.append(f"{DASH}: not defined, or not in this run.")
    seen: dict[str, list[str]] = {}
    for row in rows:
        for column, cell in zip(columns, row.cells, strict=True):
            if cell is not None and cell.note and row.kind != "reference":
                seen.setdefault(cell.note, []).append(f"`{row.label}` on {column.label}")
    notes.extend(f"{_few(where)}: {note}." for note, where in seen.items())
    return notes


def brackets(methods: Collection[str], estimates: Estimates) -> str:
    """Say what brackets hold, without a full stop; Wilson's interval is a formula, the others are resampled."""
    made = sorted(set(methods) - {"none"})
    drawn = f", {estimates.resamples:,} resamples of clusters" if set(made) - {"Wilson"} else ""
    return f"Brackets: {100 * estimates.level:g} % interval ({' or '.join(made) or 'none could be made'}){drawn}"


def titled(title: str, run: Run) -> str:
    """Add to a title what must be said of the questions."""
    return title + (f" ({run.suite})" if run.suite else "")


def size(protocol: Protocol, run: Run, kind: Measure, name: str) -> str:
    """What stands under a column's name: the unit and how many questions in how many clusters."""
    unit = {"percent": "%", "points": "points"}[protocol.unit] if name == "score" else kind.unit
    rows = None if run.scores is None else run.scores[run.scores["protocol"] == protocol.name]
    if rows is None or rows.empty:
        return f"{unit}, not scored"
    return f"{unit}, n = {rows['id'].nunique():,} ({rows['cluster'].nunique():,} {_plural(protocol.cluster)})"


def _plural(word: str) -> str:
    return word if word.endswith("s") else f"{word}s"


def suite_note(run: Run) -> list[str]:
    """Say that unofficial numbers stand alone; nothing for official protocols."""
    return [f"{run.suite.capitalize()}: these numbers must not be put beside published ones."] if run.suite else []


def seeds_note(run: Run, covered: bool = True) -> str:
    """Say whether intervals cover the variation between trainings; ``covered``: they are resampled over seeds too."""
    n = len(run.manifest.seeds)
    if n == 0:
        return "Nothing was trained: given models, each evaluated once by greedy decoding."
    if n == 1:
        return "One seed per student: training variation is unmeasured."
    if not covered:
        return f"{n} seeds per student, averaged; intervals do not cover the variation between trainings."
    return (
        f"{n} seeds per student, averaged; intervals and tests cover both the sampling of questions and the variation between"
        " trainings (resampled in two levels, Student's t for so few trainings)."
    )


def _test(columns: Sequence[Column], estimates: Estimates, used: set[str]) -> str:
    """Name the tests and their correction."""
    alpha = f"{100 * (1 - estimates.level):g} %"
    tests = {
        "exact McNemar": "exact McNemar test where every unit is right or wrong and one training of either answered it",
        "bootstrap": f"paired bootstrap, {estimates.resamples:,} resamples",
    }
    said = ", else ".join(text for name, text in tests.items() if name in used)
    several = sum(c.protocol is not None for c in columns) > 1
    over = "; Holm's correction over the benchmarks of a pair of students" if several else ""
    return f"two-sided {alpha}; {said}{over}; pairs are not corrected for their number"


def _rivalling(columns: Sequence[Column], rows: Sequence[Row], estimates: Estimates) -> set[str]:
    """Names of the tests that decided the marks."""
    students = [row.label for row in rows if row.kind == "student"]
    return {d.test for c in columns for d in estimates.rivals(students, c.name, c.protocol)[1].values()}


def _small_print(columns: Sequence[Column]) -> str:
    """Explain the lines under a difference's interval."""
    scores = any(c.name == "score" for c in columns)
    counts = "+a −b: questions on which the first student scores higher, and lower. " if scores else ""
    return f"{counts}Detects: the smallest true difference that these questions would resolve with 80 % power, uncorrected."


def _variation(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Set training variation beside sampling variation, where several seeds measured it."""
    said = []
    for k, column in enumerate(columns):
        cells = [row.cells[k] for row in rows if row.kind in ("student", "difference")]
        found = [c.estimate for c in cells if c is not None and c.estimate is not None]
        both = [(e.training_sd, e.sampling_se) for e in found if e.training_sd is not None and e.sampling_se is not None]
        if both:
            scale, decimals = column.measure.scale, column.measure.decimals
            training, sampling = (f"{scale * statistics.median(v):.{decimals}f}" for v in zip(*both, strict=True))
            said.append(f"{column.label} {training} and {sampling}")
    if not said:
        return []
    return [
        f"Standard deviation between trainings, and standard error of sampling questions, median of rows: {'; '.join(said)}."
    ]


def _few(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
