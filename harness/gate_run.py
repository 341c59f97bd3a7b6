"""A run against a baseline: the same questions or an error, every student on every protocol, and what flipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from harness.base import UserError, read_jsonl, unknown
from harness.baseline import Baseline, questions_digest, questions_of
from harness.gate import ALL, INCONCLUSIVE, Comparison, Flip, Outcome, judge, measure, needed
from harness.margins import Kind, Margins
from reports.frames import Missing
from reports.resampling import Bootstrap, bootstrap, bootstrap_mean

if TYPE_CHECKING:
    from reports.frames import Run


def compare(run: Run, baseline: Baseline, margins: Margins, students: Sequence[str] | None = None) -> Outcome:
    """Compare everything that the baseline holds with the same in the run.

    Args:
        run: loaded by :func:`reports.frames.load`; students: names of the baseline to compare, or None for all.

    Raises:
        UserError: other protocol versions, data or questions than the baseline's; a student or protocol that the run lacks; an
            unknown name in ``students``.
    """
    wanted = _wanted(baseline, students)
    questions = {name: _same_questions(run, baseline, name) for name in _protocols(baseline, wanted)}
    found = [c for student in wanted for c in _of_student(run, baseline, margins, student, questions)]
    verdicts = judge([c.measured for c in found], [c.margin for c in found], margins.alpha)
    judged = []
    for comparison, (verdict, fail, fine) in zip(found, verdicts, strict=True):
        m = comparison.measured
        n = needed(m, comparison.margin, comparison.n, margins.alpha / len(found)) if verdict == INCONCLUSIVE else None
        low, high = m.interval(margins.alpha)
        judged.append(replace(comparison, verdict=verdict, p_fail=fail, p_pass=fine, needed=n, low=low, high=high))
    new = [p.name for p in run.protocols if p.name not in baseline.header.protocols] + [
        s for s in run.kinds if s not in baseline.students()
    ]
    return Outcome(tuple(judged), margins.alpha, tuple(new))


def _wanted(baseline: Baseline, students: Sequence[str] | None) -> list[str]:
    known = baseline.students()
    for name in students or ():
        if name not in known:
            raise unknown("student of the baseline", name, known)
    chosen = known if students is None else [name for name in known if name in students]
    if not chosen:
        raise UserError("the baseline holds no student to compare")
    return chosen


def _protocols(baseline: Baseline, students: Sequence[str]) -> list[str]:
    held = {p for student in students for p in baseline.protocols(student)}
    return [p for p in baseline.header.protocols if p in held]


def _same_questions(run: Run, baseline: Baseline, name: str) -> pd.DataFrame:
    """Return the questions of a protocol, once it is certain that run and baseline mean the same by them."""
    asked = baseline.header.protocols[name]
    record = run.manifest.protocols.get(name)
    if record is None:
        raise UserError(f"{run.folder} was not run on {name}, which the baseline holds; it was run on "
                        f"{', '.join(run.manifest.protocols)}")  # fmt: skip
    if record.version != asked.version:
        raise UserError(f"{name}: the run is of protocol version {record.version}, the baseline of version {asked.version}:"
                        " their scores mean different things; take a new baseline with --update")  # fmt: skip
    if record.digest != asked.data:
        raise UserError(f"{name}: the run's data have the digest {record.digest}, the baseline's {asked.data}:"
                        " these are different data; take a new baseline with --update")  # fmt: skip
    questions = questions_of(run, name)
    ids = baseline.header.ids[asked.ids]
    more, fewer = sorted(set(questions["id"]) - set(ids)), sorted(set(ids) - set(questions["id"]))
    if more or fewer:
        where = f"{len(fewer)} of the baseline's are missing" + (f", first {fewer[0]!r}" if fewer else "")
        also = f"; {len(more)} are new" + (f", first {more[0]!r}" if more else "")
        raise UserError(
            f"{name}: the run answered {len(questions)} questions, the baseline {len(ids)}: {where}{also} (--limit?)"
        )
    if questions_digest(questions) != asked.questions:
        raise UserError(f"{name}: the questions have the baseline's ids, but other clusters, groups or gold answers")
    return questions


def _of_student(
    run: Run, baseline: Baseline, margins: Margins, student: str, questions: Mapping[str, pd.DataFrame]
) -> list[Comparison]:
    """Measure one student on each of its protocols and, where it has several, on all together; verdicts come later."""
    kind: Kind = "trained" if baseline.kind(student) == "student" else "given"
    protocols = [protocol for protocol in run.protocols if protocol.name in baseline.protocols(student)]
    found, pairs = [], []
    for protocol in protocols:
        try:
            rows = run.scored(student, protocol.name)
        except Missing as error:
            raise UserError(
                f"{run.folder}: {student} has no scores on {protocol.name}, which the baseline holds; run it, choose others"
                " with --students, or take a new baseline with --update"
            ) from error
        before = baseline.rows(student, protocol.name, questions[protocol.name])
        flips = _flips(run, student, protocol.name, rows, before)
        sides = bootstrap(rows, protocol), bootstrap(before, protocol)
        facts = student, kind, protocol.name, protocol.unit, (_seeds(before), _seeds(rows))
        found.append(_open(facts, sides, margins.of(protocol, kind), flips))
        pairs.append((rows, before.assign(protocol=protocol.name)))
    if len(protocols) > 1:
        ours, theirs = (_mean(pd.concat(side, ignore_index=True)) for side in zip(*pairs, strict=True))
        flips = tuple(replace(flip, id=f"{c.protocol} {flip.id}") for c in found for flip in c.flips)
        margin = sum(margins.percent(protocol, kind) for protocol in protocols) / len(protocols)
        facts = student, kind, ALL, "percent", found[0].seeds
        found.append(_open(facts, (ours, theirs), margin, flips))
    return found


def _mean(rows: pd.DataFrame) -> Bootstrap:
    """Resample the mean score in percent, protocols with equal weight; an image that several ask about is drawn once."""
    return bootstrap_mean(rows.assign(percent=100.0 * rows["score"]), "percent")


def _open(
    facts: tuple[str, Kind, str, str, tuple[tuple[int, ...], tuple[int, ...]]],
    sides: tuple[Bootstrap, Bootstrap],
    margin: float,
    flips: tuple[Flip, ...],
) -> Comparison:
    """Return a comparison without its verdict, which depends on all the others."""
    (student, kind, protocol, unit, seeds), (ours, theirs) = facts, sides
    return Comparison(
        student=student, kind=kind, protocol=protocol, unit=unit, seeds=seeds, n=len(ours.questions), clusters=ours.clusters,
        before=theirs.value, after=ours.value, measured=measure(ours, theirs), margin=margin, low=math.nan, high=math.nan,
        p_fail=math.nan, p_pass=math.nan, verdict=INCONCLUSIVE, needed=None, flips=flips,
    )  # fmt: skip


def _seeds(rows: pd.DataFrame) -> tuple[int, ...]:
    return tuple(sorted(int(seed) for seed in rows["seed"].dropna().unique()))


def _flips(run: Run, student: str, protocol: str, rows: pd.DataFrame, before: pd.DataFrame) -> tuple[Flip, ...]:
    """Return the questions whose mean score over seeds changed, those that became worse first."""
    old, new = before.groupby("id")["score"].mean(), rows.groupby("id")["score"].mean()
    changed = old.index[(old - new.reindex(old.index)).abs() > 1e-12]
    if changed.empty:
        return ()
    first_old = before[before["id"].isin(changed)].drop_duplicates("id").set_index("id")
    first_new = rows[rows["id"].isin(changed)].sort_values("seed").drop_duplicates("id").set_index("id")
    replies = _replies(run, student, first_new["seed"].iloc[0], protocol)
    flips = [
        Flip(
            id=str(name),
            gold=str(first_old.loc[name, "gold"]),
            before=float(old[name]),
            after=float(new[name]),
            said_before=str(first_old.loc[name, "prediction"]) if first_old.loc[name, "kept"] else None,
            said_after=replies[str(name)],
        )
        for name in changed
    ]
    return tuple(sorted(flips, key=lambda flip: (flip.after - flip.before, flip.id)))


def _replies(run: Run, student: str, seed: int | None, protocol: str) -> dict[str, str]:
    """Return the replies of one training by question id."""
    path = run.folder / "replies" / student / f"seed{0 if pd.isna(seed) else int(seed)}" / f"{protocol}.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist: the run is damaged, its changed replies cannot be shown. Run it again")
    return {str(row["id"]): str(row["reply"]) for row in read_jsonl(path)}
