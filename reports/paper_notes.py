"""What stands under a table of the paper: how to read its three kinds of number, sources, and what no cell holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from reports.cells import Cell, Row
from reports.layout import Layout
from reports.measures import Estimates
from reports.notes import DASH, brackets, seeds_note
from reports.paper_facts import EFFICIENCY, Fact, Footnotes


def notes(
    layout: Layout,
    found: Sequence[Fact],
    measured: Collection[Cell | None],
    rows: Sequence[Row],
    footnotes: Footnotes,
    estimates: Estimates,
    alone: str | None,
) -> list[str]:
    """Return the sentences; ``alone``: why nothing reported is shown, or None."""
    run = estimates.run
    out = []
    if alone is not None:
        out.append(f"Measured only; these numbers must not be put beside published ones: {alone}.")
    elif layout.setting:
        out.append(f"Reported: {layout.setting}")
    made = {c.estimate.method for c in measured if c is not None and c.estimate is not None} - {"none"}
    if made:
        out.append(f"{brackets(made, estimates)}.")
    if any(c is not None and c.low is not None for c in measured):
        out.append(seeds_note(run))
    if alone is None:
        out.append(
            "Difference: measured minus reported, with the interval of the measured number: sources give none for theirs. Where"
            " sources contradict each other, all their values are shown, and the difference to each."
        )
        out.extend(footnotes.sentences())
        out.extend(_deltas(found))
        out.extend(_facts(found))
    if any(name in EFFICIENCY for name in layout.measures):
        out.append(_efficiency(estimates))
    if any(c is None for row in rows for c in row.cells):
        out.append(f"{DASH}: not run, not recorded, or not reported.")
    return out


def _deltas(found: Sequence[Fact]) -> list[str]:
    """Differences that sources print."""
    said = []
    for fact in found:
        if fact.kind in ("delta", "sign"):
            value = fact.value if fact.number is None else f"{fact.number:+g}".replace("-", "−")
            said.append(f"`{fact.student}` − `{fact.minus}` on {fact.measure}: {value} ({fact.said})")
    return [f"Reported differences: {'; '.join(said)}."] if said else []


def _facts(found: Sequence[Fact]) -> list[str]:
    said = [f"{fact.row}, {fact.column}: {fact.value} ({fact.said})" for fact in found if fact.kind == "fact"]
    return [f"Also reported, for no cell of this table: {'; '.join(said)}."] if said else []


def _efficiency(estimates: Estimates) -> str:
    run = estimates.run
    costs = [cost for student in run.manifest.students for cost in run.costs(student)]
    devices = sorted({str(c["device"]) for c in costs if c.get("device")})
    memory = sorted({str(c["memory"]) for c in costs if c.get("memory")})
    where = f" on {', '.join(devices)}" if devices else ""
    what = f"{'; '.join(memory)}, " if memory else ""
    return (
        f"Measured{where}, median over seeds, no interval: speed from the median step, students that train side by side share"
        f" the machine; peak memory ({what}GB = 10^9 bytes); the numbers that the weighting holds, in percent of the student's."
    )
