"""How well teacher entropy alone would have told a blind teacher or a wrong label, beside each per-sample weight."""

from __future__ import annotations

from collections.abc import Sequence

from reports.frames import Missing, weighting
from reports.layouts.planted_truth import seeds_notes
from reports.measures import Estimates, Measure
from reports.notes import DASH, suite_note
from reports.planted import ALL, Planted, Weights, planted
from reports.statistics import Interval
from reports.tables import Cell, Column, Row, Table, titled

TITLE = "Planted truth: what would have told it?"
CAPTION = (
    "Area under the ROC curve (AUC), in all and by benchmark: the probability that a sample with a blind teacher has the "
    "larger teacher entropy, or the smaller weight β, than one with a healthy teacher; below, that a sample with a wrong "
    "label has the larger entropy, or the larger weight, than one with a right label where the teacher is healthy. 0.5 "
    "tells nothing, 1 everything; below 0.5 it points the wrong way. The oracle is told, and left out."
)
ORDER = 6


def build(name: str, estimates: Estimates) -> Table:
    """Make the table; see :func:`reports.planted.planted` for errors."""
    found = planted(estimates)
    titles = {p.benchmark: p.title for p in estimates.run.protocols}
    places = (ALL, *found.benchmarks)
    columns = []
    for place in places:
        own = Measure("AUC", "AUC", 1.0, 2, None, "area under the ROC curve")
        label = "All samples" if place == ALL else titles.get(place, place)
        under = f"AUC, n = {found.entropy_blind[place].n:,}" if place in found.entropy_blind else "AUC"
        columns.append(Column(label, under, own, "auc", None, "training samples" if place == ALL else place))
    rows = []
    for kind, title in (("blind", "tells a blind teacher"), ("noise", "tells a wrong label")):
        rows.extend(_rows(found, kind, title, places))
    if not rows:
        raise Missing("No sample of this run has a teacher entropy beside a planted truth.")
    percent = f"{100 * estimates.level:g} %"
    notes = (
        *suite_note(estimates.run),
        f"Brackets: {percent} interval, {estimates.resamples:,} resamples of training images. Entropy is read from every "
        "recorded sample with an image (n), weights from those of the last quarter of training "
        f"({found.counts['blind'] + found.counts['healthy']:,}); wrong labels are told among samples with a healthy teacher.",
        "Bold: the interval excludes 0.5. Comparisons are not corrected for their number.",
        *seeds_notes(estimates),
        f"{DASH}: only one of the two kinds there.",
    )
    return Table(name, titled(TITLE, estimates.run), CAPTION, notes, tuple(columns), tuple(rows), False)


def _rows(found: Planted, kind: str, title: str, places: Sequence[str]) -> list[Row]:
    entropy = found.entropy_blind if kind == "blind" else found.entropy_noise
    rows = [_row("teacher entropy", title, entropy, places, "reference", DASH)] if entropy else []
    for entry in [e for e in found.entries if weighting(e.student).partition("@")[0] != "oracle"]:
        for weights in entry.weights:
            told = _told(weights, kind)
            if told:
                channel = f" ({weights.channel})" if len(entry.weights) > 1 else ""
                rows.append(_row(f"{entry.student}{channel}", title, told, places, kind, str(weights.seeds)))
    return rows


def _told(weights: Weights, kind: str) -> dict[str, Interval]:
    return weights.tells_blind if kind == "blind" else weights.tells_noise


def _row(label: str, about: str, results: dict[str, Interval], places: Sequence[str], kind: str, seeds: str) -> Row:
    cells: list[Cell | None] = []
    for place in places:
        e = results.get(place)
        if e is None:
            cells.append(None)
            continue
        resolved = e.low is not None and e.high is not None and (e.low > 0.5 or e.high < 0.5)
        cells.append(Cell(e.value, e.low, e.high, 2, marked=resolved, note=e.note, estimate=e))
    return Row(label, None, kind, seeds, tuple(cells), about)
