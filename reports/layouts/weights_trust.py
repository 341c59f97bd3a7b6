"""Whom learned weights trust: the claim that a smaller weight means a worse teacher, tested on what the run knows."""

from __future__ import annotations

from reports.frames import Irrelevant, Missing
from reports.measures import Estimates, Measure
from reports.notes import DASH, suite_note
from reports.statistics import Interval
from reports.tables import Cell, Column, Row, Table, titled
from reports.trust import LATE, trusts

TITLE = "Whom learned weights trust"
CAPTION = (
    "Does the weight β know what it is said to know? The probability that a training sample on which the teacher is wrong, or"
    " whose label is noisy, has the smaller β than one without; 0.5 means that β knows nothing of it."
)
ORDER = 62


def build(name: str, estimates: Estimates) -> Table:
    """Make the table; Irrelevant where no student's weights differ between samples."""
    kind = Measure("AUC", "AUC", 1.0, 2, None, "probability of the smaller weight")
    columns = tuple(
        Column(label, "AUC", kind, key, None, "training samples")
        for key, label in (("wrong", "Teacher wrong"), ("noisy", "Label noisy"))
    )
    rows = []
    try:
        found = trusts(estimates)
    except Missing as missing:
        raise Irrelevant(str(missing)) from missing  # the figure of these weights says it
    channels = {t.student: sum(o.student == t.student for o in found) for t in found}
    for trust in found:
        label = trust.student + (f" ({trust.channel})" if channels[trust.student] > 1 else "")
        seeds = str(len(estimates.run.seed_folders(trust.student)))
        rows.append(Row(label, None, "student", seeds, (_cell(trust.wrong), _cell(trust.noisy))))
    percent = f"{100 * estimates.level:g} %"
    notes = [
        *suite_note(estimates.run),
        f"Brackets: {percent} interval, {estimates.resamples:,} resamples of training samples within either kind;"
        f" n = {', '.join(f'{n:,}' for n in sorted({len(t.weights) for t in found}))} samples. Weights: geometric mean over the"
        f" last {100 * LATE:g} % of the steps and over seeds; the variation between trainings is not covered.",
        "Bold: the interval excludes 0.5. Comparisons are not corrected for their number.",
        f"{DASH}: the run has no such sample, or no other.",
    ]
    return Table(name, titled(TITLE, estimates.run), CAPTION, tuple(notes), columns, tuple(rows), False)


def _cell(e: Interval | None) -> Cell | None:
    if e is None:
        return None
    resolved = e.low is not None and e.high is not None and (e.low > 0.5 or e.high < 0.5)
    return Cell(e.value, e.low, e.high, 2, marked=resolved, note=e.note, estimate=e)
