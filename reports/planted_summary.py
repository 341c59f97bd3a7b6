"""What a planted run says, in words: neither that a weighting works nor that it fails unless an interval excludes zero."""

from __future__ import annotations

from reports.frames import Missing, weighting
from reports.layouts.planted_truth import said
from reports.measures import Estimates, measure
from reports.planted import ALL, Entry, Gap, Planted, planted
from reports.sentences import Conclusion, signed
from reports.statistics import Interval

#: Measures that the summary speaks of; the table has the others.
_TOLD = ("nll", "accuracy")


def planted_summary(estimates: Estimates) -> tuple[list[Conclusion], int]:
    """Return the sentences of a planted run and how many intervals they rest on; nothing where nothing was planted."""
    try:
        found = planted(estimates)
    except Missing:
        return [], 0  # the table's place says what is missing
    out: list[Conclusion] = []
    total = 0
    for gap in [g for g in found.gaps if g.measure in _TOLD]:
        sentences, n = _recovered(found, gap)
        out.extend(sentences)
        total += n
    blind, n = _correlations(found, "blindness", "where the teacher is blind")
    noise, m = _correlations(found, "noise", "on a wrong label, among samples with a healthy teacher")
    entropy = _entropy(found)
    out.extend([*blind, *noise, *entropy])
    if out:
        text = (
            "Planted truth: a weight that is computed without the label cannot find wrong labels, and a gain in NLL is no "
            "proof that blind samples were found. The faults were drawn once and under one teacher."
        )
        out.append(Conclusion("caveat", text))
    return out, total + n + m + len(entropy)


def _number(e: Interval) -> str:
    ends = [] if e.low is None or e.high is None else [e.low, e.high]
    value, *span = [signed(x, 2) for x in (e.value, *ends)]
    return value + (f" [{', '.join(span)}]" if span else "")


def _recovered(found: Planted, gap: Gap) -> tuple[list[Conclusion], int]:
    m, d = measure(gap.measure), gap.difference
    numbers = [signed(m.scale * x, m.decimals) for x in (d.value, d.low, d.high)]
    unit = "percentage points" if m.unit == "%" else m.unit
    size = f"`{gap.oracle}` minus `ce` {numbers[0]} {unit} [{numbers[1]}, {numbers[2]}]"
    if not gap.improves:
        text = f"Planted truth, {said(gap)}: the oracle is not resolved better than `ce` ({size}), so no share is told."
        return [Conclusion("unresolved", text)], 1
    kinds: dict[str, list[str]] = {"goes": [], "falls": [], "open": []}
    for entry in found.entries:
        share = entry.shares.get(gap.measure)
        if share is None or entry.student == "ce" or _is_oracle(entry):
            continue
        kind = "open" if not share.resolved else "goes" if share.interval.value > 0 else "falls"
        kinds[kind].append(f"`{entry.student}` {_number(share.interval)}")
    out = []
    lead = f"Planted truth, {said(gap)}: share of the way from `ce` (0) to the oracle (1; {size})"
    parts = [f"resolved above `ce`: {', '.join(kinds['goes'])}"] if kinds["goes"] else []
    parts += [f"resolved below `ce`: {', '.join(kinds['falls'])}"] if kinds["falls"] else []
    if parts:
        out.append(Conclusion("resolved", f"{lead}. {_upper('; '.join(parts))}."))
    if kinds["open"]:
        start = f"Planted truth, {said(gap)}" if parts else lead
        out.append(Conclusion("unresolved", f"{start}: not resolved from `ce`: {', '.join(kinds['open'])}."))
    return out, 1 + sum(len(v) for v in kinds.values())


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _is_oracle(entry: Entry) -> bool:
    return weighting(entry.student).partition("@")[0] == "oracle"


def _correlations(found: Planted, name: str, where: str) -> tuple[list[Conclusion], int]:
    kinds: dict[str, list[str]] = {"smaller": [], "larger": [], "neither": []}
    for entry in found.entries:
        for weights in entry.weights:
            e: Interval | None = getattr(weights, name)
            if e is None or e.low is None or e.high is None or _is_oracle(entry):
                continue
            kind = "smaller" if e.high < 0 else "larger" if e.low > 0 else "neither"
            channel = f", weight of `{weights.channel}`" if len(entry.weights) > 1 else ""
            kinds[kind].append(f"`{entry.student}`{channel} (ρ {_number(e)})")
    out = []
    for kind in ("smaller", "larger"):
        if kinds[kind]:
            out.append(Conclusion("resolved", f"Planted truth: β is {kind} {where}: {', '.join(kinds[kind])}."))
    if kinds["neither"]:
        text = f"Planted truth: β is neither resolved smaller nor larger {where}: {', '.join(kinds['neither'])}."
        out.append(Conclusion("unresolved", text))
    return out, sum(len(v) for v in kinds.values())


def _entropy(found: Planted) -> list[Conclusion]:
    e = found.entropy_blind.get(ALL)
    if e is None or e.low is None or e.high is None:
        return []
    numbers = f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"
    lead = "Planted truth: teacher entropy alone"
    if e.low > 0.5 or e.high < 0.5:
        word = "larger" if e.low > 0.5 else "smaller"
        return [
            Conclusion("resolved", f"{lead} is {word} on blind samples than on healthy ones, AUC {numbers} (0.5 is nothing).")
        ]
    return [Conclusion("unresolved", f"{lead} is not resolved to tell blind from healthy, AUC {numbers} (0.5 is nothing).")]
