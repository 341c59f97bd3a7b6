"""The gate: is a run worse than its baseline by more than a margin, question by question?

Per student and protocol, with d = run minus baseline (paired by question, clusters resampled together) and margin m: FAIL
where d is shown to lie below -m, PASS where it is shown to lie above -m, INCONCLUSIVE otherwise. Both are one-sided tests; each
family of them (one test per comparison) is corrected by Holm, so that the gate fails falsely with probability at most alpha.

The tests are studentised: (d + m) / se against Student's t, with se from the cluster bootstrap. Tail shares of 2,000 resamples
cannot go below 1/2001, too coarse for a Holm correction over a hundred comparisons. A FAIL also needs as many clusters that
differ at all as let an exact sign test reject. Several seeds add their spread to the error (Welch-Satterthwaite), paired where
both sides have the same; with one, training variation is unmeasured, and the margins of trained students have to cover it.

Sources: non-inferiority by a one-sided interval, ICH E9 (1998), section 3.3.2; Holm 1979; Satterthwaite 1946;
Agresti & Min 2005 for the pseudo-counts of paired proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from harness.base import UserError, unknown
from harness.baseline import Baseline, questions_digest, questions_of
from harness.margins import Kind, Margins
from reports.decisions import holm, needed_n
from reports.resampling import Bootstrap, bootstrap
from reports.statistics import compare as paired

if TYPE_CHECKING:
    from reports.frames import Run
    from tasks import Protocol

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"


@dataclass(frozen=True)
class Measured:
    """A paired difference with its error.

    Attributes:
        difference: run minus baseline, in the protocol's unit, mean over seeds on either side.
        error: its standard error; df: degrees of freedom of that error.
        clusters_apart: clusters on which the two differ at all.
    """

    difference: float
    error: float
    df: float
    clusters_apart: int

    @property
    def identical(self) -> bool:
        """Whether the two score alike everywhere."""
        return self.clusters_apart == 0

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of "the true difference is at least ``bound``"."""
        if self.identical:
            return 1.0 if self.difference >= bound else 0.0
        floor = 0.5**self.clusters_apart
        if self.df <= 0:
            return 1.0
        if self.error == 0.0:
            return floor if self.difference < bound else 1.0
        return max(floor, float(stats.t.cdf((self.difference - bound) / self.error, self.df)))

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of "the true difference is at most ``bound``"."""
        if self.identical:
            return 0.0 if self.difference > bound else 1.0
        if self.df <= 0:
            return 1.0
        if self.error == 0.0:
            return 0.5**self.clusters_apart if self.difference > bound else 1.0
        return float(stats.t.sf((self.difference - bound) / self.error, self.df))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the limits of the difference, each one-sided at ``alpha``; infinite where no error can be given."""
        if self.identical or (self.error == 0.0 and self.df > 0):
            return self.difference, self.difference
        reach = float(stats.t.ppf(1.0 - alpha, self.df)) * self.error if self.df > 0 else math.inf
        return self.difference - reach, self.difference + reach


@dataclass(frozen=True)
class Flip:
    """A question whose score changed: mean scores over seeds, 0..1, and what was said (first seed on either side)."""

    id: str
    gold: str
    before: float
    after: float
    said_before: str | None
    said_after: str


@dataclass(frozen=True)
class Comparison:
    """One student on one protocol.

    Attributes:
        seeds: trainings of the baseline and of the run; empty for given models.
        n, clusters: questions and clusters; before, after: the numbers; margin: in the same unit, ``unit``.
        low, high: limits of the difference, each one-sided at the gate's alpha, not corrected.
        p_fail, p_pass: adjusted by Holm; the verdict is FAIL or PASS where they are at most alpha.
        needed: questions that would decide with 80 % power if the true difference is the one seen; None for a verdict other
            than INCONCLUSIVE, and where no number would.
        flips: questions whose score changed, worse ones first.
    """

    student: str
    kind: Kind
    protocol: str
    unit: str
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    n: int
    clusters: int
    before: float
    after: float
    measured: Measured
    margin: float
    low: float
    high: float
    p_fail: float
    p_pass: float
    verdict: str
    needed: int | None
    flips: tuple[Flip, ...]

    @property
    def worse(self) -> list[Flip]:
        """Flips to a lower score."""
        return [flip for flip in self.flips if flip.after < flip.before]

    @property
    def better(self) -> list[Flip]:
        """Flips to a higher score."""
        return [flip for flip in self.flips if flip.after > flip.before]


@dataclass(frozen=True)
class Outcome:
    """All comparisons of a gate; ``new`` names students and protocols that only the run has, which are not compared."""

    comparisons: tuple[Comparison, ...]
    alpha: float
    new: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """FAIL if any comparison fails, PASS if all pass, INCONCLUSIVE otherwise."""
        found = {comparison.verdict for comparison in self.comparisons}
        return next(verdict for verdict in (FAIL, INCONCLUSIVE, PASS) if verdict in found)

    def count(self, verdict: str) -> int:
        """How many comparisons have a verdict."""
        return sum(comparison.verdict == verdict for comparison in self.comparisons)


def measure(run: Bootstrap, baseline: Bootstrap) -> Measured:
    """Return the paired difference of two bootstraps over the same resamples.

    Raises:
        UserError: for different questions, or resamples of which most lack a part of the benchmark.
    """
    found = paired(run, baseline)
    strata = run.tables[0].strata
    _, sizes = np.unique(strata, return_counts=True)
    # A part with one cluster shows no variation, so nothing can be said of the error (identical students aside).
    df = float(len(strata) - len(sizes)) if sizes.min() > 1 else 0.0
    # A bootstrap of C clusters has the variance of a sample of C divided by C, not by C - 1. The second factor allows for one
    # more cluster that differs than the sample happens to hold, as Agresti and Min's pseudo-counts do.
    apart = found.clusters_apart
    sampling = found.sampling_se**2 * len(strata) / df * (1.0 + 1.0 / max(apart, 1)) if df > 0 else math.inf
    terms = [(v, f) for v, f in [(sampling, df), *_training(run, baseline)] if v > 0.0]
    total = sum(variance for variance, _ in terms)
    if len(terms) > 1 and math.isfinite(total):
        df = total**2 / sum(variance**2 / freedom for variance, freedom in terms)
    return Measured(found.value, math.sqrt(total), df, found.clusters_apart)


def _training(run: Bootstrap, baseline: Bootstrap) -> list[tuple[float, float]]:
    """Return (variance of the mean over trainings, degrees of freedom): of each side, or of the difference paired by seed."""
    if run.labels == baseline.labels:
        sides = [run.per_seed - baseline.per_seed]
    else:
        sides = [run.per_seed, baseline.per_seed]
    return [(float(np.var(side, ddof=1)) / len(side), len(side) - 1.0) for side in sides if len(side) > 1]


def judge(measured: Sequence[Measured], margins: Sequence[float], alpha: float) -> list[tuple[str, float, float]]:
    """Return (verdict, adjusted p of FAIL, adjusted p of PASS) for each comparison; Holm over all of them.

    Args:
        measured: differences; margins: > 0, in the same units; alpha: one-sided level of all of them together.
    """
    fail = holm([m.p_below(-margin) for m, margin in zip(measured, margins, strict=True)])
    fine = holm([m.p_above(-margin) for m, margin in zip(measured, margins, strict=True)])
    verdicts = [FAIL if f <= alpha else PASS if p <= alpha else INCONCLUSIVE for f, p in zip(fail, fine, strict=True)]
    return list(zip(verdicts, fail, fine, strict=True))


def needed(measured: Measured, margin: float, n: int, alpha: float) -> int | None:
    """Return how many questions would decide an open comparison at one-sided ``alpha`` with 80 % power, or None.

    At least as many as let the clusters that differ, at their present share, pass the sign test's floor.
    """
    distance = measured.difference + margin
    if not math.isfinite(measured.error):
        return None
    found = needed_n(n, measured.error, distance, 1.0 - alpha)
    if found is None:
        return None
    floor = n * math.log2(1.0 / alpha) / measured.clusters_apart if distance < 0 or measured.error == 0.0 else 0.0
    return max(found, math.ceil(floor), n + 1)


# ---- a run against a baseline ----------------------------------------------------------------------------------------------


def compare(run: Run, baseline: Baseline, margins: Margins, students: Sequence[str] | None = None) -> Outcome:
    """Compare everything that the baseline holds with the same in the run.

    Args:
        run: loaded by :func:`reports.frames.load`; students: names of the baseline to compare, or None for all.

    Raises:
        UserError: other protocol versions, data or questions than the baseline's; a student or protocol that the run lacks; an
            unknown name in ``students``.
    """
    from reports.frames import Missing

    wanted = _wanted(baseline, students)
    protocols = {protocol.name: protocol for protocol in run.protocols}
    questions = {name: _same_questions(run, baseline, name) for name in _protocols(baseline, wanted)}
    found: list[Comparison] = []
    for name in questions:
        for student in wanted:
            if name in baseline.protocols(student):
                try:
                    rows = run.scored(student, name)
                except Missing as error:
                    raise UserError(
                        f"{run.folder}: {student} has no scores on {name}, which the baseline holds; run it, choose others with"
                        " --students, or take a new baseline with --update"
                    ) from error
                before = baseline.rows(student, name, questions[name])
                found.append(_comparison(run, protocols[name], baseline.kind(student), rows, before, margins))
    verdicts = judge([c.measured for c in found], [c.margin for c in found], margins.alpha)
    judged = []
    for comparison, (verdict, fail, fine) in zip(found, verdicts, strict=True):
        m = comparison.measured
        n = needed(m, comparison.margin, comparison.n, margins.alpha / len(found)) if verdict == INCONCLUSIVE else None
        low, high = m.interval(margins.alpha)
        judged.append(replace(comparison, verdict=verdict, p_fail=fail, p_pass=fine, needed=n, low=low, high=high))
    new = [p for p in protocols if p not in baseline.header.protocols] + [s for s in run.kinds if s not in baseline.students()]
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


def _comparison(
    run: Run, protocol: Protocol, kind: str, rows: pd.DataFrame, before: pd.DataFrame, margins: Margins
) -> Comparison:
    """Measure one student on one protocol; the verdict is filled in when all comparisons are known."""
    ours, theirs = bootstrap(rows, protocol), bootstrap(before, protocol)
    student = str(rows["student"].iloc[0])
    sort: Kind = "trained" if kind == "student" else "given"
    return Comparison(
        student=student, kind=sort, protocol=protocol.name, unit=protocol.unit, seeds=(_seeds(before), _seeds(rows)),
        n=len(ours.questions), clusters=ours.clusters, before=theirs.value, after=ours.value,
        measured=measure(ours, theirs), margin=margins.of(protocol, sort), low=math.nan, high=math.nan, p_fail=math.nan,
        p_pass=math.nan, verdict=INCONCLUSIVE, needed=None, flips=_flips(run, student, protocol.name, rows, before),
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
    from harness.base import read_jsonl

    path = run.folder / "replies" / student / f"seed{0 if pd.isna(seed) else int(seed)}" / f"{protocol}.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist: the run is damaged, its changed replies cannot be shown. Run it again")
    return {str(row["id"]): str(row["reply"]) for row in read_jsonl(path)}
