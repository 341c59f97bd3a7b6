"""What the numbers support, in words. A sentence says "above" or "below" only where the paired interval excludes zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports.frames import Missing, family, weighting
from reports.measures import Estimates, measure
from reports.statistics import Difference
from reports.tables import seeds_note
from reports.trust import trusts
from tasks.catalogue import Protocol

Verdict = Literal["resolved", "unresolved", "caveat"]


@dataclass(frozen=True)
class Conclusion:
    """One sentence or two; names of students stand between backticks, which each format turns into its own code style."""

    verdict: Verdict
    text: str


@dataclass(frozen=True)
class _Pair:
    a: str
    b: str
    protocol: Protocol | None
    result: Difference


def conclusions(estimates: Estimates) -> list[Conclusion]:
    """Return the sentences of the summary, the main question first.

    The main question: do fixed, task and instance weighting differ? Then: does a learned weight beat the fixed ones that
    were tried, does distillation beat plain training, does anything beat guessing, does the weight know whom to trust.
    """
    run = estimates.run
    out: list[Conclusion] = []
    if run.suite:
        out.append(Conclusion("caveat", f"No number here is comparable with a published one ({run.suite})."))
    if run.manifest.limit is not None:
        cut = f"Every benchmark was cut to its first {run.manifest.limit} clusters (images, pairs, groups)."
        out.append(Conclusion("caveat", cut))
    for name, (rows, full) in run.partial.items():
        out.append(Conclusion("caveat", f"PARTIAL: {name} was asked {rows:,} of its {full:,} questions."))
    for student in run.students:
        lost, total = run.unread(student)
        if lost:
            share = f"{100.0 * lost / total:.0f} % of the words of its prompts ({lost:,} of {total:,} tokens)"
            out.append(Conclusion("caveat", f"`{student}` cannot read {share}: its tokenizer knows them only as unknown."))
    if run.scores is None:
        return [*out, Conclusion("caveat", "The run holds no scores.parquet yet, so nothing can be concluded.")]
    students = [s for s in run.students if run.kinds.get(s) == "student"]
    absent = [s for s in run.manifest.students if s not in run.kinds]
    if absent:
        out.append(Conclusion("caveat", f"Not scored in this run: {', '.join(f'`{s}`' for s in absent)}."))
    compared = 0
    for members in dict.fromkeys(family(s) for s in students if family(s)):
        found, n = _weightings(members, students, estimates)
        out.extend(found)
        compared += n
    found, n = _against_ce(students, estimates)
    out.extend(found)
    compared += n
    out.extend(_floor(students, estimates))
    out.extend(_trust(estimates))
    out.append(Conclusion("caveat", seeds_note(run)))
    if compared:
        chance = (1.0 - estimates.level) * compared
        out.append(
            Conclusion(
                "caveat",
                f"{compared} paired comparisons were made for this summary, without correction for their number: "
                f"were no student different from another, about {chance:.2g} of them would still look resolved.",
            )
        )
    return out


# ---- pairs -----------------------------------------------------------------------------------------------------------------


def _pairs(pairs: Sequence[tuple[str, str]], name: str, estimates: Estimates) -> list[_Pair]:
    """Every pair on every protocol (scores) or on their mean (diagnostics), as far as the run holds both."""
    where: Sequence[Protocol | None] = estimates.run.protocols if name == "score" else (None,)
    return [
        _Pair(a, b, p, estimates.difference(a, b, name, p))
        for p in where
        for a, b in pairs
        if estimates.has(a, name, p) and estimates.has(b, name, p)
    ]


def _amount(pair: _Pair, name: str) -> str:
    m, d = measure(name), pair.result
    unit = " points" if pair.protocol is None or pair.protocol.unit == "points" else " percentage points"
    unit = f" {m.unit}" if name != "score" else unit
    numbers = [f"{m.scale * x:+.{m.decimals}f}".replace("-", "−") for x in (d.value, d.low, d.high)]
    return f"{numbers[0]}{unit} [{numbers[1]}, {numbers[2]}]"


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _places(pairs: Sequence[_Pair]) -> str:
    return "; ".join(f"{p.protocol.title}: {_amount(p, 'score')}" for p in pairs if p.protocol)


def _weightings(members: tuple[str, ...], students: Sequence[str], estimates: Estimates) -> tuple[list[Conclusion], int]:
    """Fixed, task, instance (and whatever else is learned) of one energy, and the controls with other fixed weights."""
    own = [s for s in students if family(s) == members and s.startswith("ce+") and weighting(s)]
    plain = [s for s in own if weighting(s) == "fixed"]
    learned = [s for s in own if not weighting(s).startswith("fixed")]
    controls = [s for s in own if weighting(s).startswith("fixed@")]
    if not learned or not plain:
        return [], 0
    pairs = [(a, b) for k, a in enumerate(learned) for b in [*plain, *learned[:k]]]
    label = f"`{'+'.join(members)}`"
    out: list[Conclusion] = []
    scored = _pairs(pairs, "score", estimates)
    names = ", ".join(weighting(s) for s in plain + learned[:-1]) + f" and {weighting(learned[-1])}"
    if scored:
        out.append(_on_scores(label, names, scored))
    likely = _pairs(pairs, "nll", estimates)
    if likely:
        out.append(_on_likelihood(label, names, likely))
    tried = _pairs([(a, b) for a in learned for b in controls], "nll", estimates)
    if tried:
        out.append(_on_controls(label, tried, learned, controls))
    return out, len(scored) + len(likely) + len(tried)


def _on_scores(label: str, names: str, pairs: Sequence[_Pair]) -> Conclusion:
    apart = [p for p in pairs if p.result.resolved]
    n = len({p.protocol.name for p in pairs if p.protocol})
    if not apart:
        return Conclusion(
            "unresolved",
            f"{label}: {names} weighting are not resolved from each other on any of {_count(n, 'benchmark')} "
            f"({_count(len(pairs), 'paired comparison')}).",
        )
    said = []
    for a, b in dict.fromkeys((p.a, p.b) for p in apart):
        for word, sign in (("above", 1), ("below", -1)):
            here = [p for p in apart if (p.a, p.b) == (a, b) and sign * p.result.value > 0]
            if here:
                said.append(f"`{a}` is {word} `{b}` on {_places(here)}")
    rest = len(pairs) - len(apart)
    tail = f" The other {rest} of {len(pairs)} comparisons between {names} weighting are not resolved." if rest else ""
    return Conclusion("resolved", f"{label}: {', and '.join(said)}.{tail}")


def _on_likelihood(label: str, names: str, pairs: Sequence[_Pair]) -> Conclusion:
    apart = [p for p in pairs if p.result.resolved]
    if not apart:
        return Conclusion("unresolved", f"{label}: nor are {names} resolved on test NLL, averaged over the benchmarks.")
    said = [f"`{p.a}` {'below' if p.result.value < 0 else 'above'} `{p.b}`, {_amount(p, 'nll')}" for p in apart]
    rest = len(pairs) - len(apart)
    tail = f"; {rest} of {len(pairs)} pairs are not resolved" if rest else ""
    return Conclusion("resolved", f"{label}, test NLL averaged over the benchmarks (lower is better): {'; '.join(said)}{tail}.")


def _on_controls(label: str, pairs: Sequence[_Pair], learned: Sequence[str], controls: Sequence[str]) -> Conclusion:
    """The control that matters: is the learned weight better, or only larger?"""
    fixed = ", ".join(f"`{c}`" for c in controls)
    better = [a for a in learned if all(p.result.resolved and p.result.value < 0 for p in pairs if p.a == a)]
    worse = [p for p in pairs if p.result.resolved and p.result.value > 0]
    if better:
        said = ", ".join(f"`{a}`" for a in better)
        return Conclusion("resolved", f"{label}: {said} has a lower test NLL than every other fixed weight tried ({fixed}).")
    text = f"{label}: no learned weighting is resolved better in test NLL than every other fixed weight tried ({fixed})"
    if worse:
        text += "; " + ", ".join(f"`{p.b}` is better than `{p.a}` by {_amount(p, 'nll')}" for p in worse)
    return Conclusion("resolved" if worse else "unresolved", text + ".")


def _against_ce(students: Sequence[str], estimates: Estimates) -> tuple[list[Conclusion], int]:
    others = [s for s in students if s != "ce"]
    if "ce" not in students or not others:
        return [], 0
    pairs = _pairs([(s, "ce") for s in others], "score", estimates)
    above = [p for p in pairs if p.result.resolved and p.result.value > 0]
    below = [p for p in pairs if p.result.resolved and p.result.value < 0]
    out = []
    if pairs:
        n = len({p.protocol.name for p in pairs if p.protocol})
        text = (
            f"Distillation against `ce` alone: of {_count(len(pairs), 'comparison')} "
            f"({_count(len(others), 'student')}, {_count(n, 'benchmark')}) "
            f"{len(above)} are resolved above, {len(below)} below and {len(pairs) - len(above) - len(below)} not."
        )
        out.append(Conclusion("resolved" if above or below else "unresolved", text))
    likely = _pairs([(s, "ce") for s in others], "nll", estimates)
    if likely:
        lower = [p for p in likely if p.result.resolved and p.result.value < 0]
        higher = [p for p in likely if p.result.resolved and p.result.value > 0]
        asked = _count(len(likely), "distilled student")
        text = f"Test NLL, mean over benchmarks: {len(lower)} of {asked} resolved below `ce`"
        text += (f", {len(higher)} above" if higher else "") + "."
        out.append(Conclusion("resolved" if lower or higher else "unresolved", text))
    return out, len(pairs) + len(likely)


# ---- floors and trust ------------------------------------------------------------------------------------------------------


def _floor(students: Sequence[str], estimates: Estimates) -> list[Conclusion]:
    """Does a column mean anything: does the teacher, and does plain training, beat guessing and the constant answer?"""
    out = []
    for student in [s for s in ("teacher", "ce") if s == "teacher" or s in students]:
        scored = [p for p in estimates.run.protocols if estimates.has(student, "score", p)]
        if not scored:
            continue
        fails = [p.title for p in scored if not _clears(student, p, estimates)]
        cleared = f"{len(scored) - len(fails)} of {_count(len(scored), 'benchmark')}"
        text = f"`{student}` lies above random guessing and the best constant answer on {cleared}"
        text += f"; not resolved on {', '.join(fails)}." if fails and len(fails) < len(scored) else ", by its interval."
        out.append(Conclusion("unresolved" if fails else "resolved", text))
    return out


def _clears(student: str, protocol: Protocol, estimates: Estimates) -> bool:
    constant = estimates.run.manifest.protocols[protocol.name].constant
    floors = [x for x in (estimates.run.chance(protocol), constant.value if constant else None) if x is not None]
    low = estimates.interval(student, "score", protocol).low
    return bool(floors) and low is not None and low > max(floors)


def _trust(estimates: Estimates) -> list[Conclusion]:
    try:
        found = trusts(estimates.run, estimates.resamples, estimates.seed, estimates.level)
    except Missing:
        return []  # the figure's place says what is missing
    out = []
    for trust in found:
        for what, result in (("whose teacher is wrong", trust.wrong), ("with a noisy label", trust.noisy)):
            if result is None or result.low is None or result.high is None:
                continue
            numbers = f"{result.value:.2f} [{result.low:.2f}, {result.high:.2f}]"
            lead = f"`{trust.student}`, late in training: a sample {what} has"
            if result.low > 0.5:
                out.append(Conclusion("resolved", f"{lead} the smaller weight than another with probability {numbers}."))
            elif result.high < 0.5:
                mirrored = f"{1 - result.value:.2f} [{1 - result.high:.2f}, {1 - result.low:.2f}]"
                out.append(Conclusion("resolved", f"{lead} the larger weight than another with probability {mirrored}."))
            else:
                text = f"{lead} no resolved tendency to a smaller or larger weight (P = {numbers}, 0.5 is none)."
                out.append(Conclusion("unresolved", text))
    return out
