"""What the numbers support, in words. A sentence says "above" or "below" only where the paired interval excludes zero."""

from __future__ import annotations

from collections.abc import Sequence

from reports.comparisons import weightings
from reports.frames import Missing
from reports.measures import Estimates
from reports.notes import seeds_note
from reports.planted_summary import planted_summary
from reports.sentences import Conclusion, compared, count, listed
from reports.statistics import Interval
from reports.trust import Trust, complementary, trusts
from tasks.catalogue import Protocol

#: More students with per-sample weights than this are told together.
_FEW = 2


def conclusions(estimates: Estimates) -> list[Conclusion]:
    """Return the sentences of the summary, the main question first.

    The main question: do fixed (or manual), task and instance weighting differ? Before it, where faults were planted: how
    much of the way to the oracle does each weighting go, and are its weights smaller where the teacher is blind? Then: does
    a learned weight beat the fixed ones that were tried, does distillation beat plain training, does anything beat
    guessing, does the weight know whom to trust.
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
    out += [Conclusion("caveat", f"FAILED, and missing here: {line}.") for line in run.manifest.failed]
    out += [Conclusion("caveat", f"Not learned from: {line}.") for line in run.manifest.left_out]
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
    made = 0
    for part in (planted_summary(estimates), weightings(students, estimates), _against_ce(students, estimates)):
        out.extend(part[0])
        made += part[1]
    out.extend(_floor(students, estimates))
    out.extend(_trust(estimates))
    out.append(Conclusion("caveat", seeds_note(run)))
    if made:
        out.append(
            Conclusion(
                "caveat",
                f"{count(made, 'paired comparison')} made for this summary; Holm's correction covers the benchmarks of each"
                f" pair of students, not the pairs: were no student different from another, one in"
                f" {1.0 / (1.0 - estimates.level):.0f} pairs would still show a resolved benchmark.",
            )
        )
    return out


# ---- distillation, floors, trust --------------------------------------------------------------------------------------------


def _against_ce(students: Sequence[str], estimates: Estimates) -> tuple[list[Conclusion], int]:
    others = [s for s in students if s != "ce"]
    if "ce" not in students or not others:
        return [], 0
    pairs = compared([(s, "ce") for s in others], "score", estimates)
    above = [p for p in pairs if p.result.resolved and p.result.value > 0]
    below = [p for p in pairs if p.result.resolved and p.result.value < 0]
    out = []
    if pairs:
        n = len({p.protocol.name for p in pairs if p.protocol})
        text = (
            f"Distillation against `ce` alone: of {count(len(pairs), 'comparison')} "
            f"({count(len(others), 'student')}, {count(n, 'benchmark')}) "
            f"{len(above)} are resolved above, {len(below)} below and {len(pairs) - len(above) - len(below)} not."
        )
        out.append(Conclusion("resolved" if above or below else "unresolved", text))
    likely = compared([(s, "ce") for s in others], "nll", estimates)
    if likely:
        lower = [p for p in likely if p.result.resolved and p.result.value < 0]
        higher = [p for p in likely if p.result.resolved and p.result.value > 0]
        asked = count(len(likely), "distilled student")
        text = f"Test NLL, mean over benchmarks: {len(lower)} of {asked} resolved below `ce`"
        text += (f", {len(higher)} above" if higher else "") + "."
        if not any("+" in s for s in others):  # each energy alone: which ones is the question
            for word, here in (("below", lower), ("above", higher)):
                best = sorted(here, key=lambda p: p.result.value)
                text += f" Resolved {word}, lowest first: {listed([p.a for p in best], most=20)}." if here else ""
        out.append(Conclusion("resolved" if lower or higher else "unresolved", text))
    return out, len(pairs) + len(likely)


def _floor(students: Sequence[str], estimates: Estimates) -> list[Conclusion]:
    """Does a column mean anything: does the teacher, and does plain training, beat guessing and the constant answer?"""
    out = []
    for student in [s for s in ("teacher", "ce") if s == "teacher" or s in students]:
        scored = [p for p in estimates.run.protocols if estimates.has(student, "score", p)]
        if not scored:
            continue
        fails = [p.title for p in scored if not _clears(student, p, estimates)]
        cleared = f"{len(scored) - len(fails)} of {count(len(scored), 'benchmark')}"
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
        found = trusts(estimates)
    except Missing:
        return []  # the figure's place says what is missing
    apart = complementary(estimates.run)  # wrong labels only where the teacher is right: their weights would speak of that
    results = [
        (trust, what, result)
        for trust in found
        for what, result in (("whose teacher is wrong", trust.wrong), ("with a noisy label", None if apart else trust.noisy))
        if result is not None and result.low is not None and result.high is not None
    ]
    if len(results) > 2 * _FEW:
        return _trust_at_large(results)
    return [_trust_of(trust, what, result) for trust, what, result in results]


def _trust_of(trust: Trust, what: str, result: Interval) -> Conclusion:
    numbers = f"{result.value:.2f} [{result.low:.2f}, {result.high:.2f}]"
    lead = f"`{trust.student}`, late in training: a sample {what} has"
    kind = _kind(result)
    if kind == "smaller":
        return Conclusion("resolved", f"{lead} the smaller weight than another with probability {numbers}.")
    if kind == "larger" and result.low is not None and result.high is not None:
        mirrored = f"{1 - result.value:.2f} [{1 - result.high:.2f}, {1 - result.low:.2f}]"
        return Conclusion("resolved", f"{lead} the larger weight than another with probability {mirrored}.")
    text = f"{lead} no resolved tendency to a smaller or larger weight (P = {numbers}, 0.5 is none)."
    return Conclusion("unresolved", text)


def _kind(result: Interval) -> str:
    if result.low is not None and result.low > 0.5:
        return "smaller"
    return "larger" if result.high is not None and result.high < 0.5 else "neither"


def _trust_at_large(results: Sequence[tuple[Trust, str, Interval]]) -> list[Conclusion]:
    """One sentence per question where there are many students."""
    out = []
    for asked in dict.fromkeys(what for _, what, _ in results):
        here = [(trust, result) for trust, what, result in results if what == asked]
        parts = []
        for kind in ("smaller", "larger", "neither"):
            own = [(t, r) for t, r in here if _kind(r) == kind]
            if own:
                low, high = min(r.value for _, r in own), max(r.value for _, r in own)
                word = "no resolved tendency" if kind == "neither" else f"the {kind} weight"
                span = f"{low:.2f} to {high:.2f}" if len(own) > 1 else f"{low:.2f}"
                parts.append(f"{word} with {len(own)} ({listed([t.student for t, _ in own], 3)}; P {span})")
        lead = f"Late in training, a sample {asked} has, of {count(len(here), 'per-sample weighting')},"
        apart = any(_kind(r) != "neither" for _, r in here)
        end = "; P is the probability of the smaller weight, 0.5 is none."
        out.append(Conclusion("resolved" if apart else "unresolved", f"{lead} {', '.join(parts)}{end}"))
    return out
