"""The planted truth: what each weighting makes of a teacher that is known to be blind, and of labels known to be wrong.

Read from the run folder alone: ``scores.parquet`` and ``diagnostics.parquet`` for how much of the way from ``ce`` to the
oracle a student goes, ``betas.parquet`` for its weights, ``data/train.parquet`` for what was planted where. Weights are
those of the last quarter of training, as in :mod:`reports.trust`. Only samples that show an image are looked at: a teacher
cannot be blind on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.base import UserError
from reports import ranks
from reports.frames import Irrelevant, Run, family, weighting
from reports.measures import Estimates, measure
from reports.ranks import Units
from reports.statistics import Bootstrap, Difference, Floats, Interval, compare, percentile_ends
from reports.trust import late, varies

#: What a share is taken of: the mean NLL with equal weight per benchmark, per question, and the mean accuracy.
MEASURES = ("nll", "nll_pooled", "accuracy")
ALL = "all"


@dataclass(frozen=True)
class Share:
    """How much of the way from ``ce`` to the oracle a student goes in one measure: (ce - x) / (ce - oracle).

    Attributes:
        interval: 0 at ``ce``, 1 at the oracle; without ends where the gap is not resolved from zero.
        by_seed: the same within each seed; empty where the three were not trained under the same seeds.
    """

    interval: Interval
    by_seed: tuple[float, ...] = ()

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes 0, that is ``ce``."""
        low, high = self.interval.low, self.interval.high
        return low is not None and high is not None and (low > 0 or high < 0)


@dataclass(frozen=True)
class Gap:
    """What there is to recover in one measure: the oracle and ``ce``, and ``oracle`` minus ``ce``, paired."""

    measure: str
    oracle: str
    difference: Difference

    @property
    def improves(self) -> bool:
        """Whether the oracle is resolved better than ``ce``; only then can a share of the gap be told."""
        better = measure(self.measure).higher_is_better
        return self.difference.resolved and (self.difference.value > 0) == better


@dataclass(frozen=True)
class Weights:
    """One student's late weights of one channel.

    Attributes:
        channel: whose weight; per_sample: False where all samples of a step share one weight.
        blind, healthy: 0.25, 0.5 and 0.75 quantiles of beta over samples with a blind and with a healthy teacher; three
            equal numbers where weights do not differ between samples.
        blindness: Spearman's rank correlation of beta with blindness.
        noise: the same with label noise, over samples with a healthy teacher; both None where nothing varies.
        tells_blind: probability, by benchmark and in ``all``, that a blind sample has the smaller weight than a healthy one.
        tells_noise: probability that a noisy sample has the larger weight, under a healthy teacher: trust moves to it.
        weighs_ce: cross-entropy has a weight of its own, so that beta is no ratio.
    """

    channel: str
    per_sample: bool
    blind: tuple[float, float, float]
    healthy: tuple[float, float, float]
    n: tuple[int, int]
    seeds: int
    blindness: Interval | None
    noise: Interval | None
    tells_blind: dict[str, Interval]
    tells_noise: dict[str, Interval]
    weighs_ce: bool


@dataclass(frozen=True)
class Entry:
    """One student: its shares by measure, as far as they can be told, and the weights of its channels."""

    student: str
    shares: dict[str, Share]
    weights: tuple[Weights, ...]


@dataclass(frozen=True)
class Planted:
    """Everything that the report says of a planted run.

    Attributes:
        entries: in the run's order; gaps: by measure and oracle.
        counts: samples with an image that students were weighted on late in training, by kind: blind, healthy, noisy (of
            the healthy).
        entropy_blind, entropy_noise: probability, by benchmark and in ``all``, that a blind (a noisy) sample has the larger
            teacher entropy: its AUC as a detector.
        benchmarks: of the training data, in its order.
    """

    entries: tuple[Entry, ...]
    gaps: tuple[Gap, ...]
    counts: dict[str, int]
    entropy_blind: dict[str, Interval]
    entropy_noise: dict[str, Interval]
    benchmarks: tuple[str, ...]

    @property
    def ceiling(self) -> float:
        """The largest rank correlation with blindness that distinct weights can reach: sqrt(3 p (1 - p)), below 1."""
        p = self.counts["blind"] / max(1, self.counts["blind"] + self.counts["healthy"])
        return float(np.sqrt(3.0 * p * (1.0 - p)))


def planted(estimates: Estimates) -> Planted:
    """Return the numbers of the planted truth.

    Raises:
        Irrelevant: where the run plants no blind teacher.
        Missing: where it does and the run folder lacks what the numbers need.
        UserError: for a damaged file, or weights of samples that the training data does not hold.
    """
    return estimates.once("planted", lambda: _planted(estimates))


def plants(run: Run) -> bool:
    """Whether the run's training data holds samples whose teacher is blind."""
    data = run.manifest.preset.data
    if not (run.folder / "data" / "train.parquet").is_file() and not (data.get("blindness") or data.get("blind_benchmarks")):
        return False  # nothing says that anything was planted
    return bool(run.training["blind"].any())


def _planted(estimates: Estimates) -> Planted:
    run = estimates.run
    if not plants(run):
        raise Irrelevant("Nothing was planted in this run: its teacher is blind on no sample.")
    truth = run.training[run.training["image"].notna()].set_index("id")
    students = [s for s in run.students if run.kinds.get(s, "student") == "student"]
    found = {student: run.betas_of(student) for student in students}
    gaps = _gaps(students, estimates)
    entries = [Entry(s, _shares(s, gaps, estimates), tuple(_weights(s, found[s], truth, estimates))) for s in students]
    own = [p.benchmark for p in run.protocols]
    benchmarks = tuple(sorted(map(str, truth["benchmark"].unique()), key=lambda b: (own.index(b) if b in own else len(own), b)))
    seen = _seen(found, truth, run)
    healthy = seen[~seen["blind"].to_numpy(dtype=bool)]
    counted = _seen({s: late(f) for s, f in found.items() if len(f)}, truth, run)
    blind, noisy = (counted[flag].to_numpy(dtype=bool) for flag in ("blind", "noisy"))
    counts = {"blind": int(blind.sum()), "healthy": int((~blind).sum()), "noisy": int((noisy & ~blind).sum())}
    return Planted(
        tuple(entries), gaps, counts, _tells([seen], "blind", benchmarks, True, estimates),
        _tells([healthy], "noisy", benchmarks, True, estimates), benchmarks,
    )  # fmt: skip


# ---- the gap ---------------------------------------------------------------------------------------------------------------


def oracle_of(student: str, students: Sequence[str]) -> str | None:
    """Return the oracle over a student's own channels; for ``ce`` the first there is."""
    oracles = [s for s in students if weighting(s).partition("@")[0] == "oracle"]
    return next((s for s in oracles if not family(student) or family(s) == family(student)), None)


def _gaps(students: Sequence[str], estimates: Estimates) -> tuple[Gap, ...]:
    """One per measure and oracle that the run can tell."""
    out = []
    for name in MEASURES:
        for oracle in dict.fromkeys(o for s in students if (o := oracle_of(s, students)) is not None):
            if all(s in students and estimates.has(s, name, None) for s in ("ce", oracle)):
                out.append(Gap(name, oracle, estimates.difference(oracle, "ce", name, None)))
    return tuple(out)


def _shares(student: str, gaps: Sequence[Gap], estimates: Estimates) -> dict[str, Share]:
    out: dict[str, Share] = {}
    for gap in gaps:
        if oracle_of(student, [gap.oracle]) is None or not estimates.has(student, gap.measure, None):
            continue
        ce, own, oracle = (estimates.sample(s, gap.measure, None) for s in ("ce", student, gap.oracle))
        share = recovered(ce, own, oracle, gap.improves, estimates.level)
        if share is not None:
            out.setdefault(gap.measure, share)
    return out


def recovered(ce: Bootstrap, own: Bootstrap, oracle: Bootstrap, stable: bool, level: float) -> Share | None:
    """Return the share of the way from ``ce`` to ``oracle`` that ``own`` goes, over the same resamples of questions.

    Resamples in which the oracle is not on its side of ``ce`` count against both ends of the interval.

    Args:
        stable: whether the gap is resolved from zero. If not, the share has no interval, and its note says why.

    Returns:
        None where ``ce`` and the oracle score exactly alike.

    Raises:
        UserError: where the three answered different questions.
    """
    gap = compare(ce, oracle, level)
    compare(own, ce, level)  # the three must have answered the same questions
    facts = gap.n, gap.clusters, own.seeds
    by_seed = _by_seed(ce, own, oracle)
    if gap.value == 0.0:
        return None
    value = (ce.value - own.value) / gap.value
    if own is ce or own is oracle:
        return Share(Interval(value, None, None, *facts, "none", "by definition"), by_seed)
    if not stable:
        note = "the oracle is not resolved better than `ce`: a share of that gap has no stable denominator and no interval"
        return Share(Interval(value, None, None, *facts, "none", note), by_seed)
    top, bottom = (ce.draws - own.draws) / np.sign(gap.value), (ce.draws - oracle.draws) / np.sign(gap.value)
    fine = np.isfinite(top) & np.isfinite(bottom)
    top, bottom = top[fine], bottom[fine]
    ratio = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    low = percentile_ends(np.where(bottom > 0, ratio, -np.inf), level)[0]
    high = percentile_ends(np.where(bottom > 0, ratio, np.inf), level)[1]
    return Share(Interval(value, low, high, *facts, "paired cluster bootstrap"), by_seed)


def _by_seed(ce: Bootstrap, own: Bootstrap, oracle: Bootstrap) -> tuple[float, ...]:
    if not ce.seeds == own.seeds == oracle.seeds:
        return ()
    c, x, o = (b.per_seed for b in (ce, own, oracle))
    return tuple(float(v) for v in (c - x) / (c - o)) if (c != o).all() else ()


# ---- weights ---------------------------------------------------------------------------------------------------------------


def _joined(rows: pd.DataFrame, truth: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Rows of a ``betas.parquet`` with the truth of their samples; those that show no image are left out."""
    lost = set(rows["id"]) - set(run.training["id"])
    if lost:
        owner = rows["student"].iloc[0]
        raise UserError(
            f"{run.folder / 'students' / str(owner)}: betas.parquet weighs sample {min(lost)!r}, which data/train.parquet does"
            " not hold. Remove both and run the same command again"
        )
    return rows.drop(columns=["noisy"]).join(truth[["benchmark", "image", "noisy", "blind"]], on="id", how="inner")


def _seen(found: dict[str, pd.DataFrame], truth: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Every sample with an image that any student was weighted on, once; its value is the teacher's entropy."""
    rows = [f[["id", "teacher_entropy", "noisy", "student"]].drop_duplicates("id") for f in found.values() if len(f)]
    if not rows:
        run.betas  # noqa: B018  says what is missing
    seen = _joined(pd.concat(rows).drop_duplicates("id"), truth, run)
    return seen.assign(value=seen["teacher_entropy"].astype(np.float64))


def _weights(student: str, betas: pd.DataFrame, truth: pd.DataFrame, estimates: Estimates) -> list[Weights]:
    out: list[Weights] = []
    if not weighting(student):
        return out  # one channel alone has nothing to be weighed against
    for channel, rows in betas.groupby("channel", sort=False):
        if channel == "ce":
            continue
        per_sample = varies(rows)
        frame = _joined(late(rows), truth, estimates.run)
        keys = ["benchmark", "image", "noisy", "blind"]
        each = frame.groupby(["seed", "id"], sort=True)[["log", *keys]].agg({"log": "mean"} | dict.fromkeys(keys, "first"))
        each = each.rename(columns={"log": "value"}).reset_index()
        blind = each["blind"].to_numpy(dtype=bool)
        if not blind.any() or blind.all():
            continue  # too few steps to have met both kinds
        out.append(_of_channel(str(channel), each, frame, per_sample, _weighs_ce(student, estimates.run), estimates))
    return out


def _of_channel(
    channel: str, each: pd.DataFrame, frame: pd.DataFrame, per_sample: bool, weighs_ce: bool, estimates: Estimates
) -> Weights:
    blind = each["blind"].to_numpy(dtype=bool)
    seeds = [part for _, part in each.groupby("seed", sort=True)]
    healthy = [part[~part["blind"].to_numpy(dtype=bool)] for part in seeds]
    n = tuple(each.loc[mask, "id"].nunique() for mask in (blind, ~blind))
    if not per_sample:
        level = float(np.exp(frame.groupby(["seed", "step"])["log"].first().mean()))
        same = (level, level, level)
        return Weights(channel, False, same, same, (n[0], n[1]), len(seeds), None, None, {}, {}, weighs_ce)
    beta = np.exp(each["value"].to_numpy())
    quantiles = [np.quantile(beta[mask], [0.25, 0.5, 0.75]) for mask in (blind, ~blind)]
    benchmarks = [str(b) for b in each["benchmark"].unique()]
    return Weights(
        channel, True, _triple(quantiles[0]), _triple(quantiles[1]), (n[0], n[1]), len(seeds),
        _rank(seeds, "blind", estimates), _rank(healthy, "noisy", estimates),
        _tells(seeds, "blind", benchmarks, False, estimates), _tells(healthy, "noisy", benchmarks, True, estimates),
        weighs_ce,
    )  # fmt: skip


def _triple(values: Floats) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _units(frame: pd.DataFrame, flag: str) -> Units:
    return Units(frame["value"].to_numpy(), frame[flag].to_numpy(dtype=bool), [str(i) for i in frame["image"]])


def _rank(parts: Sequence[pd.DataFrame], flag: str, estimates: Estimates) -> Interval | None:
    units = [_units(part, flag) for part in parts]
    return ranks.estimate(units, ranks.correlation, estimates.resamples, estimates.seed, estimates.level)


def _tells(
    parts: Sequence[pd.DataFrame], flag: str, benchmarks: Sequence[str], high: bool, estimates: Estimates
) -> dict[str, Interval]:
    """Probability that a flagged sample has the larger (``high``) or the smaller value, in all and by benchmark."""
    out = {}
    for name in (ALL, *benchmarks):
        here = [_units(part if name == ALL else part[part["benchmark"] == name], flag) for part in parts]
        statistic = ranks.larger if high else ranks.smaller
        result = ranks.estimate(here, statistic, estimates.resamples, estimates.seed, estimates.level)
        if result is not None:
            out[name] = result
    return out


def _weighs_ce(student: str, run: Run) -> bool:
    """Whether cross-entropy ever had a weight other than 1."""
    rows = run.dynamics
    own = rows[(rows["student"] == student) & (rows["channel"] == "ce")]["weight"].dropna()
    return bool((np.abs(own - 1.0) > 1e-6).any())
