"""Do weightings differ? Sentences on one energy with a few weightings in full, and on many in one sentence per weighting."""

from __future__ import annotations

from collections.abc import Sequence

from reports.frames import adapts, family, weighting
from reports.measures import Estimates
from reports.sentences import Conclusion, Pair, amount, compared, count, listed

#: More energies, or more learned weightings of one, than this are told in one sentence per weighting.
_FEW = 2
#: Pairs that are spelled out in one sentence.
_WORSE = 3
#: Weightings that a learned one is compared with, the first that the run holds: the paper's baseline is manual.
BASELINES = ("fixed", "manual")


def weightings(students: Sequence[str], estimates: Estimates) -> tuple[list[Conclusion], int]:
    """Return what the run says of learned against given weights, and how many comparisons that took."""
    families: dict[tuple[str, ...], list[str]] = {}
    for student in students:
        if student.startswith("ce+"):
            families.setdefault(family(student), []).append(student)
    kept = {members: own for members, own in families.items() if _baseline(own) and any(adapts(s) for s in own)}
    few = len(kept) <= _FEW and all(sum(adapts(s) for s in own) <= _FEW for own in kept.values())
    out: list[Conclusion] = []
    total = 0
    if not few:
        out, total = _across(kept, estimates)
    for members, own in kept.items():
        found, n = _of_energy(members, own, estimates) if few else _controls(members, own, estimates)
        out.extend(found)
        total += n
    return out, total


def _baseline(own: Sequence[str]) -> str | None:
    """The student whose weight was given before training; None where there is none."""
    return next((s for word in BASELINES for s in own if weighting(s) == word), None)


# ---- many ------------------------------------------------------------------------------------------------------------------


def _across(kept: dict[tuple[str, ...], list[str]], estimates: Estimates) -> tuple[list[Conclusion], int]:
    """Mean NLL and mean accuracy: one sentence for each two weightings, or for each baseline where there is one energy."""
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for own in kept.values():
        plain = _baseline(own)
        task = next((s for s in own if weighting(s) == "task"), None)
        for student in [s for s in own if adapts(s)]:
            against = [plain, task if weighting(student).startswith("instance") else None]
            for other in [o for o in against if o is not None]:
                pairs.setdefault((weighting(student), weighting(other)), []).append((student, other))
    said: dict[str, list[tuple[str, list[Pair]]]] = {}
    for (one, other), found in pairs.items():
        told = [(compared(found, name, estimates), name) for name in ("nll", "accuracy")]
        text = ", ".join(_direction(p, name) for p, name in told if p)
        if text:
            said.setdefault(other, []).append((f"`@{one}` {text}", [pair for p, _ in told for pair in p]))
    total = sum(len(made) for parts in said.values() for _, made in parts)
    if len(kept) > 1:
        where = f"over {len(kept)} energies"
        groups = [(other, [part]) for other, parts in said.items() for part in parts]
    else:
        where = f"with `{'+'.join(next(iter(kept), ()))}`"
        groups = list(said.items())
    out = []
    for other, parts in groups:
        apart = any(pair.sign for _, made in parts for pair in made)
        text = f"Against `@{other}` {where}: {'; '.join(text for text, _ in parts)}."
        out.append(Conclusion("resolved" if apart else "unresolved", text))
    return out, total


def _direction(pairs: Sequence[Pair], name: str) -> str:
    """How many energies lie on either side, or the numbers where there is only one."""
    what = {"nll": "mean test NLL", "accuracy": "mean accuracy"}[name]
    if len(pairs) == 1:
        return f"{what} {amount(pairs[0], name)}" + ("" if pairs[0].sign else ", not resolved")
    parts = []
    for word, sign in (("lower", -1), ("higher", 1)):
        here = ["+".join(family(p.a)) for p in pairs if p.sign == sign]
        if here:
            parts.append(f"resolved {word} with {len(here)} ({listed(here)})")
    rest = sum(p.sign == 0 for p in pairs)
    return f"{what} " + ", ".join([*parts, f"not resolved with {rest}"] if rest else parts)


def _controls(members: tuple[str, ...], own: Sequence[str], estimates: Estimates) -> tuple[list[Conclusion], int]:
    learned, controls = [s for s in own if adapts(s)], [s for s in own if weighting(s).startswith("fixed@")]
    tried = compared([(a, b) for a in learned for b in controls], "nll", estimates)
    return ([_on_controls(f"`{'+'.join(members)}`", tried, learned, controls)] if tried else []), len(tried)


# ---- few -------------------------------------------------------------------------------------------------------------------


def _places(pairs: Sequence[Pair]) -> str:
    return "; ".join(f"{p.protocol.title}: {amount(p, 'score')}" for p in pairs if p.protocol)


def _of_energy(members: tuple[str, ...], own: Sequence[str], estimates: Estimates) -> tuple[list[Conclusion], int]:
    """Fixed (or manual), task and instance of one energy in full, and the controls with other fixed weights."""
    plain = [s for s in [_baseline(own)] if s is not None]
    learned = [s for s in own if adapts(s)]
    pairs = [(a, b) for k, a in enumerate(learned) for b in [*plain, *learned[:k]]]
    label = f"`{'+'.join(members)}`"
    out: list[Conclusion] = []
    scored = compared(pairs, "score", estimates)
    names = ", ".join(weighting(s) for s in plain + learned[:-1]) + f" and {weighting(learned[-1])}"
    if scored:
        out.append(_on_scores(label, names, scored))
    likely = compared(pairs, "nll", estimates)
    if likely:
        out.append(_on_likelihood(label, names, likely))
    tried, n = _controls(members, own, estimates)
    return [*out, *tried], len(scored) + len(likely) + n


def _on_scores(label: str, names: str, pairs: Sequence[Pair]) -> Conclusion:
    apart = [p for p in pairs if p.result.resolved]
    n = len({p.protocol.name for p in pairs if p.protocol})
    if not apart:
        return Conclusion(
            "unresolved",
            f"{label}: {names} weighting are not resolved from each other on any of {count(n, 'benchmark')} "
            f"({count(len(pairs), 'paired comparison')}).",
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


def _on_likelihood(label: str, names: str, pairs: Sequence[Pair]) -> Conclusion:
    apart = [p for p in pairs if p.result.resolved]
    if not apart:
        return Conclusion("unresolved", f"{label}: nor are {names} resolved on test NLL, averaged over the benchmarks.")
    said = [f"`{p.a}` {'below' if p.result.value < 0 else 'above'} `{p.b}`, {amount(p, 'nll')}" for p in apart]
    rest = len(pairs) - len(apart)
    tail = f"; {rest} of {len(pairs)} pairs are not resolved" if rest else ""
    return Conclusion("resolved", f"{label}, test NLL averaged over the benchmarks (lower is better): {'; '.join(said)}{tail}.")


def _on_controls(label: str, pairs: Sequence[Pair], learned: Sequence[str], controls: Sequence[str]) -> Conclusion:
    """The control that matters: is the learned weight better, or only larger?"""
    fixed = ", ".join(f"`{c}`" for c in controls)
    better = [a for a in learned if all(p.result.resolved and p.result.value < 0 for p in pairs if p.a == a)]
    worse = [p for p in pairs if p.result.resolved and p.result.value > 0]
    if better:
        said = listed(better)
        verb = "has" if len(better) == 1 else "have"
        return Conclusion("resolved", f"{label}: {said} {verb} a lower test NLL than every other fixed weight tried ({fixed}).")
    text = f"{label}: no learned weighting is resolved better in test NLL than every other fixed weight tried ({fixed})"
    if worse:
        text += "; " + ", ".join(f"`{p.b}` is better than `{p.a}` by {amount(p, 'nll')}" for p in worse[:_WORSE])
        text += f" and {len(worse) - _WORSE} more such pairs" if len(worse) > _WORSE else ""
    return Conclusion("resolved" if worse else "unresolved", text + ".")
