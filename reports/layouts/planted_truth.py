"""The planted truth, one row per weighting: gap recovered, weights on blind and healthy samples, rank correlations."""

from __future__ import annotations

from reports.frames import weighting
from reports.measures import Estimates, Measure, measure
from reports.notes import DASH, seeds_note, suite_note
from reports.planted import MEASURES, Entry, Gap, Planted, Weights, planted
from reports.sentences import signed
from reports.statistics import Interval
from reports.tables import Cell, Column, Row, Table, titled

TITLE = "Planted truth: does a weighting do what it says?"
CAPTION = (
    "Part of the training samples have a teacher that does not see the image, and part of the labels are wrong; which is "
    "on record. Recovered: share of the way from cross-entropy alone (0) to the oracle (1), which is told where the "
    "teacher is blind. β: weight of the energy late in training where the teacher is blind, and where it is healthy. ρ: "
    "rank correlation of β with blindness, and, where the teacher is healthy, with label noise: below 0 is a smaller "
    "weight there, which is right for a blind teacher; for a wrong label a larger one would be."
)
ORDER = 5

_SHARES = {"nll": "NLL", "nll_pooled": "NLL, pooled", "accuracy": "Accuracy"}
_OVER = {"nll": "mean over protocols", "nll_pooled": "all questions", "accuracy": "mean over protocols"}


def build(name: str, estimates: Estimates) -> Table:
    """Make the table; see :func:`reports.planted.planted` for errors."""
    found = planted(estimates)
    rows = []
    for entry in found.entries:
        for k, weights in enumerate(entry.weights or (None,)):
            rows.append(_row(entry, weights, first=k == 0))
    notes = (*suite_note(estimates.run), *_notes(found, estimates))
    return Table(name, titled(TITLE, estimates.run), CAPTION, notes, _columns(found), tuple(rows), False)


def _columns(found: Planted) -> tuple[Column, ...]:
    blind, healthy, noisy = (f"{found.counts[k]:,}" for k in ("blind", "healthy", "noisy"))
    both = f"{found.counts['blind'] + found.counts['healthy']:,}"
    columns = []
    for name in MEASURES:
        m = Measure(_SHARES[name], "share of the gap", 1.0, 2, None, measure(name).description)
        asked = max((gap.difference.n for gap in found.gaps if gap.measure == name), default=0)
        under = f"share of the gap, n = {asked:,}" if asked else "share of the gap"
        columns.append(Column(f"Recovered {_SHARES[name]}", under, m, f"recovered_{name}", None, _OVER[name]))
    for key, n in (("blind", blind), ("healthy", healthy)):
        m = Measure("β", "weight", 1.0, 2, None, "late weight of the energy")
        columns.append(Column(f"β {key}", f"median, n = {n}", m, f"beta_{key}", None, "training samples"))
    for key, title, n in (
        ("blindness", "ρ blindness", f"n = {blind} of {both}"),
        ("noise", "ρ noise", f"n = {noisy} of {healthy}"),
    ):
        m = Measure("ρ", "Spearman", 1.0, 2, None, "rank correlation with the weight")
        columns.append(Column(title, n, m, f"rho_{key}", None, "training samples"))
    return tuple(columns)


def _row(entry: Entry, weights: Weights | None, first: bool) -> Row:
    cells: list[Cell | None] = []
    for name in MEASURES:
        share = entry.shares.get(name) if first else None
        cells.append(None if share is None else _interval(share.interval, share.resolved, _seeds(share.by_seed)))
    if weights is None:
        cells.extend([None] * 4)
    else:
        for key, n in zip(("blind", "healthy"), weights.n, strict=True):
            cells.append(_quartiles(getattr(weights, key), n, weights))
        cells.extend(_correlation(r) for r in (weights.blindness, weights.noise))
    several = len(entry.weights) > 1 and weights is not None
    label = f"{entry.student} ({weights.channel})" if several and weights is not None else entry.student
    trainings = {s.interval.seeds for s in entry.shares.values()} | {w.seeds for w in entry.weights}
    return Row(label, None, "student", "/".join(str(s) for s in sorted(trainings)) or DASH, tuple(cells))


def _seeds(by_seed: tuple[float, ...]) -> str | None:
    return "by seed: " + ", ".join(f"{v:.2f}" for v in by_seed) if len(by_seed) > 1 else None


def _interval(e: Interval, marked: bool, note: str | None = None) -> Cell:
    return Cell(e.value, e.low, e.high, 2, marked=marked, note="; ".join(n for n in (e.note, note) if n) or None, estimate=e)


def _correlation(e: Interval | None) -> Cell | None:
    if e is None:
        return None
    resolved = e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)
    return _interval(e, resolved)


def _quartiles(values: tuple[float, float, float], n: int, weights: Weights) -> Cell:
    kind = "middle half of the samples" if weights.per_sample else "one weight for all samples, geometric mean of the steps"
    low, high = (values[0], values[2]) if weights.per_sample else (None, None)
    return Cell(values[1], low, high, 2, estimate=Interval(values[1], low, high, n, n, weights.seeds, kind))


# ---- what stands under it --------------------------------------------------------------------------------------------------


def _notes(found: Planted, estimates: Estimates) -> list[str]:
    percent = f"{100 * estimates.level:g} %"
    c = found.counts
    return [
        f"Samples that show an image and whose weight was recorded in the last quarter of training: {c['blind']:,} with a "
        f"blind teacher, {c['healthy']:,} with a healthy one, of which {c['noisy']:,} carry a wrong label.",
        *_gap_notes(found),
        f"Brackets beside shares: {percent} interval over the same {estimates.resamples:,} resamples of question clusters for "
        "all three students; beside ρ: over resamples of training images; beside β: no interval, the middle half of samples.",
        "Bold: the interval excludes 0. Comparisons are not corrected for their number.",
        f"ρ with a yes/no fact stays within ±{found.ceiling:.2f} where all weights differ, at this share of blind samples; an "
        "oracle with two weights reaches −1.",
        "A weight that is computed without the label cannot find wrong labels: ρ with noise near 0 is then no fault of the "
        "training. A higher share recovered is no proof that blind samples were found: read it beside ρ.",
        *_ratio_notes(found),
        *seeds_notes(estimates),
        f"{DASH}: not defined (no second channel, or one weight for all samples), or not in this run.",
    ]


def seeds_notes(estimates: Estimates) -> list[str]:
    """What the intervals of a planted run leave out."""
    return [
        seeds_note(estimates.run, covered=False),
        "One draw of the planted faults, one teacher: their variation is unmeasured too.",
    ]


def _gap_notes(found: Planted) -> list[str]:
    out = []
    for gap in found.gaps:
        m, d = measure(gap.measure), gap.difference
        numbers = [signed(m.scale * x, m.decimals) for x in (d.value, d.low, d.high)]
        unit = "percentage points" if m.unit == "%" else m.unit
        text = f"`{gap.oracle}` minus `ce` in {said(gap)}: {numbers[0]} {unit} [{numbers[1]}, {numbers[2]}]"
        if not gap.improves:
            text += ". The oracle is not resolved better here, so shares of this gap are unstable and have no interval"
        out.append(text + ".")
    if not found.gaps:
        out.append("No share can be told: the run holds no scored `ce` and oracle.")
    return out


def said(gap: Gap) -> str:
    """Name the measure of a gap in a sentence."""
    return {"nll": "mean NLL", "nll_pooled": "question-weighted NLL", "accuracy": "mean accuracy"}[gap.measure]


def _ratio_notes(found: Planted) -> list[str]:
    both = [
        f"`{e.student}`"
        for e in found.entries
        if weighting(e.student).partition("@")[0] != "oracle" and any(w.weighs_ce for w in e.weights)
    ]
    if not both:
        return []
    return [f"{', '.join(both)}: cross-entropy has a weight of its own. What counts is the ratio; β is its upper part."]
