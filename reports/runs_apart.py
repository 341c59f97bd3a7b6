"""The same student in two runs: paired on the questions, unpaired in the trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from reports import provenance
from reports.cells import Cell, Column, Row, Table
from reports.frames import Missing
from reports.measures import Estimates, measure
from reports.notes import DASH, size, suite_note, titled
from reports.sentences import Conclusion, count, listed
from reports.statistics import Bootstrap, Difference, adjust, compare
from tasks.catalogue import Protocol

TITLE = "{b} minus {a}"
CAPTION = (
    "The same student in two runs, on the same questions under the same protocol version; trainings are not paired, because "
    "nothing says that equal seeds saw equal samples."
)
SMALL_PRINT = "+a −b: questions on which the student of the run named first scores higher, and lower."


def build(name: str, a: Estimates, b: Estimates) -> Table:
    """Make the table of run ``b`` minus run ``a``.

    Raises:
        Missing: where the runs share no student, no protocol, or no protocol with the same questions.
    """
    shared, refused = _shared(a, b)
    if not shared:
        raise Missing(f"The runs share no protocol with the same questions{': ' if refused else '.'}{' '.join(refused)}")
    found = {s: differences(s, shared, a, b) for s in a.run.students if s in b.run.students}
    rows = [_row(student, shared, made, a, b) for student, made in found.items() if made]
    if not rows:
        raise Missing(f"No student was scored in both {a.run.name} and {b.run.name}.")
    columns = [Column(p.title, size(p, a.run, measure("score"), "score"), measure("score"), "score", p) for p in shared]
    origins = tuple(provenance.origin(e.run) for e in (b, a))
    tests = sorted({d.test for made in found.values() for d in made.values()})
    notes = (
        *suite_note(a.run),
        f"Brackets: {100 * a.level:g} % interval (paired cluster bootstrap), {a.resamples:,} resamples of clusters, the same"
        " for both runs; several seeds are drawn apart in either run.",
        f"Bold: resolved (two-sided {100 * (1 - a.level):g} %; {' or '.join(tests)}; Holm's correction over the benchmarks of a"
        " student, not over students).",
        SMALL_PRINT,
        *_caveats(a, b),
        *refused,
        *([f"{DASH}: not in both runs."] if any(c is None for row in rows for c in row.cells) else []),
        *(o.sentence for o in origins),
    )
    title = titled(TITLE.format(a=a.run.name, b=b.run.name), a.run)
    return Table(name, title, CAPTION, notes, tuple(columns), tuple(rows), True, origins)


def _caveats(a: Estimates, b: Estimates) -> list[str]:
    """What else than the training's chance sets the runs apart, and what the intervals cannot cover."""
    facts = [
        {"preset": e.run.manifest.preset.name, **e.run.manifest.preset.data, "harness": e.run.manifest.git_commit}
        for e in (b, a)
    ]
    differ = [k for k in dict.fromkeys([*facts[0], *facts[1]]) if facts[0].get(k) != facts[1].get(k)]
    said = "; ".join(f"{k} {facts[0].get(k, 'not recorded')} and {facts[1].get(k, 'not recorded')}" for k in differ)
    out = [f"By their manifests the runs differ in: {said}."] if differ else []
    single = [e.run.name for e in (b, a) if len(e.run.manifest.seeds) == 1]
    if single:
        out.append(f"One seed in {' and '.join(f'`{n}`' for n in single)}: its training variation is in no interval here.")
    return out


def conclusions(a: Estimates, b: Estimates) -> list[Conclusion]:
    """Return one sentence on which students differ between two runs."""
    shared, _ = _shared(a, b)
    every = {s: differences(s, shared, a, b) for s in a.run.students if s in b.run.students}
    made = [(student, name, d) for student, found in every.items() for name, d in found.items()]
    if not made:
        return []
    students = [s for s, found in every.items() if found]
    lead = f"Run `{b.run.name}` against run `{a.run.name}`, same student, same questions: of {count(len(made), 'comparison')}"
    lead += f" ({count(len(students), 'student')}, {count(len(shared), 'benchmark')})"
    parts = []
    for word, sign in (("above", 1), ("below", -1)):
        here = list(dict.fromkeys(s for s, _, d in made if d.resolved and sign * d.value > 0))
        n = sum(d.resolved and sign * d.value > 0 for _, _, d in made)
        parts.append(f"{n} resolved {word}" + (f" ({listed(here)})" if here else ""))
    apart = any(d.resolved for _, _, d in made)
    return [Conclusion("resolved" if apart else "unresolved", f"{lead}, {', '.join(parts)}.")]


def differences(student: str, shared: Sequence[Protocol], a: Estimates, b: Estimates) -> dict[str, Difference]:
    """Return one student's number in run ``b`` minus its number in run ``a``, by protocol; Holm's correction over them."""
    here = [p for p in shared if a.has(student, "score", p) and b.has(student, "score", p)]
    found = [compare(_apart(b.sample(student, "score", p)), a.sample(student, "score", p), a.level) for p in here]
    return {p.name: d for p, d in zip(here, adjust(found), strict=True)}


def _apart(sample: Bootstrap) -> Bootstrap:
    """Give trainings labels that no other run has, so that they are never paired with another run's by their seeds."""
    return dataclasses.replace(sample, labels=tuple(None if s is None else -1 - s for s in sample.labels))


def _shared(a: Estimates, b: Estimates) -> tuple[list[Protocol], list[str]]:
    """Protocols whose questions are the same in both runs, and a sentence for each that is not."""
    shared, refused = [], []
    for protocol in [p for p in a.run.protocols if p.name in b.run.manifest.protocols]:
        digests = [e.run.manifest.protocols[protocol.name].digest for e in (a, b)]
        asked = [_asked(e, protocol.name) for e in (a, b)]
        if digests[0] != digests[1] or (all(asked) and asked[0] != asked[1]):
            refused.append(f"{protocol.title}: the runs asked different questions, so they are not compared.")
        else:
            shared.append(protocol)
    return shared, refused


def _asked(estimates: Estimates, protocol: str) -> frozenset[str]:
    scores = estimates.run.scores
    return frozenset() if scores is None else frozenset(scores.loc[scores["protocol"] == protocol, "id"])


def _row(student: str, shared: Sequence[Protocol], found: dict[str, Difference], a: Estimates, b: Estimates) -> Row:
    cells: list[Cell | None] = []
    for protocol in shared:
        d = found.get(protocol.name)
        if d is None:
            cells.append(None)
            continue
        worse = d.resolved and d.value < 0
        detail = (f"+{d.above} −{d.below}",)
        places = measure("score").decimals
        cells.append(Cell(d.value, d.low, d.high, places, True, d.resolved, worse, note=d.note, estimate=d, detail=detail))
    pairs = {d.seeds for d in found.values()} if a.run.kinds.get(student) == "student" else set()
    seeds = "/".join(sorted(f"{one}:{other}" for one, other in pairs)) or DASH
    return Row(student, None, "difference", seeds, tuple(cells), run=b.run.name, minus_run=a.run.name)
