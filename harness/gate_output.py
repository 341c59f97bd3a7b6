"""What a gate says: a table for people, JUnit for CI servers, annotations and a step summary for GitHub, a list of flips."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.base import UserError, atomic_path, write_jsonl
from harness.baseline import Baseline
from harness.gate import ALL, FAIL, INCONCLUSIVE, PASS, Comparison, Flip, Outcome

_STYLES = {FAIL: "bold red", INCONCLUSIVE: "yellow", PASS: "green"}
#: Questions listed each way under a comparison on the screen and in the summaries; ``--flips FILE`` has them all.
_LISTED = 10
#: A reply may hold anything, escape sequences of terminals included. White space is not meant: it becomes a space.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x9f]")
_REPLY = 48
SUMMARY = "GITHUB_STEP_SUMMARY"


def number(value: float, signed: bool = False) -> str:
    """Write a value with one decimal."""
    return f"{value + 0.0:{'+' if signed and value else ''}.1f}".replace("-", "−")


def interval(c: Comparison) -> str:
    """Write the limits of the difference."""
    if math.isinf(c.low):
        return "(no limits)"
    return f"[{number(c.low, signed=True)}, {number(c.high, signed=True)}]"


def seeds(c: Comparison) -> str:
    """Write which trainings stand on either side."""
    if c.kind == "given":
        return "–"
    before, after = (",".join(map(str, side)) for side in c.seeds)
    return before if before == after else f"{before} → {after}"


def p_value(p: float) -> str:
    """Write a p-value."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def explain(c: Comparison) -> str:
    """Say in a line what was found."""
    what = f"{number(c.before)} → {number(c.after)} {c.unit}, difference {number(c.measured.difference, signed=True)}"
    size = f"n = {c.n:,} ({c.clusters:,} clusters)" + ("" if c.kind == "given" else f", seeds {seeds(c)}")
    text = (
        f"{c.student} on {c.protocol}: {what} {interval(c)}, margin {number(c.margin)}, {size}, p {p_value(c.p_fail)} for FAIL"
    )
    text += f" and {p_value(c.p_pass)} for PASS, {len(c.worse)} questions worse and {len(c.better)} better"
    if c.verdict == INCONCLUSIVE:
        decides = (
            f"about {c.needed:,} questions would decide" if c.needed is not None else "no number of questions decides this"
        )
        text += f"; {decides}"
    return text


def decides(c: Comparison) -> str:
    """Say what would decide an open comparison."""
    if c.measured.df <= 0:
        return "a part of the benchmark holds a single cluster, whose variation cannot be seen; ask more questions"
    if c.needed is None:
        return "the difference lies at minus the margin, which no number of questions decides"
    return f"about {c.needed:,} questions would decide"


def ordered(outcome: Outcome) -> list[Comparison]:
    """Return the comparisons, failures first, then the open ones."""
    rank = {FAIL: 0, INCONCLUSIVE: 1, PASS: 2}
    return sorted(outcome.comparisons, key=lambda c: rank[c.verdict])


def headline(outcome: Outcome) -> str:
    """Say the verdict and what it is made of."""
    parts = (f"{outcome.count(v)} {v}" for v in (PASS, FAIL, INCONCLUSIVE))
    return f"{outcome.verdict}: {', '.join(parts)} of {len(outcome.comparisons)} comparisons"


def method(outcome: Outcome) -> str:
    """Say how it was decided."""
    return (
        f"Differences are run minus baseline, paired by question, with limits one-sided at {outcome.alpha:g} each. FAIL: shown"
        f" to lie below minus the margin; PASS: shown to lie above it; both one-sided at {outcome.alpha:g} after Holm over"
        f" {len(outcome.comparisons)} comparisons (clustered t-tests, errors from 2,000 resamples)."
    )


def origin(baseline: Baseline) -> str:
    """Say where the baseline comes from."""
    h = baseline.header
    return f"baseline: preset {h.preset}, commit {(h.git_commit or 'unknown')[:12]}, manifest {h.manifest[:12]}: {h.reason}"


def environment(baseline: Baseline, versions: Mapping[str, str], processor: str | None) -> str:
    """Say what differs between the two environments, which alone can move a number; empty where nothing does."""
    h = baseline.header
    names = [n for n in {**h.versions, **versions} if h.versions.get(n) != versions.get(n) and n != "beta-kd-bench"]
    changed = [f"{n} {h.versions.get(n, 'none')} → {versions.get(n, 'none')}" for n in names]
    if h.processor != processor:
        changed.append(f"processor {h.processor} → {processor}")
    return f"changed since the baseline: {', '.join(changed)}" if changed else ""


# ---- the screen ------------------------------------------------------------------------------------------------------------


def show(console: Console, outcome: Outcome, baseline: Baseline, changes: str) -> None:
    """Print the table, the flips of everything that did not pass, and the verdict."""
    protocols = list(dict.fromkeys(c.protocol for c in outcome.comparisons))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run minus baseline")
    for name in protocols:
        table.add_column(name.replace("@", "\n@").replace(" ", "\n"), justify="right")
    cells = {(c.student, c.protocol): c for c in outcome.comparisons}
    for student in dict.fromkeys(c.student for c in outcome.comparisons):
        found = [cells.get((student, name)) for name in protocols]
        table.add_row(Text(student), *(Text("–") if c is None else _cell(c) for c in found))
    console.print(table)
    for c in ordered(outcome):
        if c.verdict != PASS:
            _say(console, f"\n{c.verdict} {explain(c)}", _STYLES[c.verdict])
            _show_flips(console, "worse", c.worse)
            _show_flips(console, "better", c.better)
    _say(console, "")
    for line in (origin(baseline), changes, new(outcome), method(outcome)):
        if line:
            _say(console, line)
    _say(console, headline(outcome), _STYLES[outcome.verdict])


def _cell(c: Comparison) -> Text:
    """Write a difference, and the verdict where it is not PASS."""
    mark = "" if c.verdict == PASS else f" {c.verdict if c.verdict == FAIL else 'open'}"
    return Text(number(c.measured.difference, signed=True) + mark, style=_STYLES[c.verdict])


def new(outcome: Outcome) -> str:
    """Name what only the run has."""
    return f"not in the baseline, not compared: {', '.join(outcome.new)}" if outcome.new else ""


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def _show_flips(console: Console, way: str, flips: Sequence[Flip]) -> None:
    for flip in flips[:_LISTED]:
        _say(console, f"  {way}: {sentence(flip)}")
    if len(flips) > _LISTED:
        _say(console, f"  {way}: {len(flips) - _LISTED} more (--flips FILE lists all)")


def short(text: str) -> str:
    """Cut a reply to one readable line."""
    line = " ".join(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).split())
    return line if len(line) <= _REPLY else f"{line[: _REPLY - 1]}…"


def sentence(flip: Flip) -> str:
    """Say what happened to one question."""
    said = "not kept" if flip.said_before is None else repr(short(flip.said_before))
    change = "" if {flip.before, flip.after} == {0.0, 1.0} else f" (score {flip.before:.2f} → {flip.after:.2f})"
    return f"{flip.id}: gold {short(flip.gold)!r}, baseline {said}, now {short(flip.said_after)!r}{change}"


# ---- files -----------------------------------------------------------------------------------------------------------------


def write_flips(path: Path, outcome: Outcome) -> None:
    """Write every question whose score changed, one JSON object per line."""
    write_jsonl(
        path,
        (
            {
                "student": c.student, "protocol": c.protocol, "verdict": c.verdict, "id": f.id, "gold": f.gold,
                "before": f.before, "after": f.after, "baseline_prediction": f.said_before, "reply": f.said_after,
            }
            for c in ordered(outcome)
            for f in c.flips
            if c.protocol != ALL  # they stand under their protocols already
        ),
    )  # fmt: skip


def write_junit(path: Path, outcome: Outcome) -> None:
    """Write JUnit XML: a comparison is a test case, FAIL a failure, INCONCLUSIVE a skipped test."""
    failures, skipped = str(outcome.count(FAIL)), str(outcome.count(INCONCLUSIVE))
    counts = {"tests": str(len(outcome.comparisons)), "failures": failures, "errors": "0", "skipped": skipped}
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", {"name": "harness.check", **counts})
    for c in outcome.comparisons:
        case = ET.SubElement(suite, "testcase", {"classname": c.protocol, "name": c.student})
        if c.verdict != PASS:
            tag = "failure" if c.verdict == FAIL else "skipped"
            element = ET.SubElement(case, tag, {"message": _xml(explain(c)), "type": c.verdict})
            element.text = _xml(
                "\n".join([f"worse: {sentence(f)}" for f in c.worse] + [f"better: {sentence(f)}" for f in c.better])
            )
    with atomic_path(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """Drop characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]", "\N{REPLACEMENT CHARACTER}", text)


# ---- GitHub ----------------------------------------------------------------------------------------------------------------


def summary_path(environ: Mapping[str, str]) -> Path:
    """Return where GitHub wants a step's summary.

    Raises:
        UserError: outside a GitHub Actions step.
    """
    if not environ.get(SUMMARY):
        raise UserError(f"--github: {SUMMARY} is not set, so this is no step of a GitHub workflow; leave --github out")
    return Path(environ[SUMMARY])


def commands(outcome: Outcome) -> list[str]:
    """Return workflow commands: an error for each FAIL, a warning for each open comparison, a notice for the whole."""
    lines = []
    for c in ordered(outcome):
        if c.verdict != PASS:
            level = "error" if c.verdict == FAIL else "warning"
            worst = "".join(f"\n{sentence(flip)}" for flip in c.worse[:_LISTED])
            title = f"{c.verdict}: {c.student} on {c.protocol}"
            lines.append(f"::{level} title={_property(title)}::{_message(explain(c) + worst)}")
    return [*lines, f"::notice title=harness.check::{_message(headline(outcome))}"]


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def write_summary(path: Path, outcome: Outcome, baseline: Baseline, changes: str) -> None:
    """Append the step summary in Markdown: GitHub shows what all steps of a job have appended."""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(markdown(outcome, baseline, changes)) + "\n")


def markdown(outcome: Outcome, baseline: Baseline, changes: str) -> list[str]:
    """Return the summary's lines."""
    lines = [f"## {headline(outcome)}", ""]
    lines += ["| verdict | student | protocol | seeds | n | baseline | run | difference | margin | worse | better |"]
    lines += ["|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for c in ordered(outcome):
        cells: list[Any] = [
            f"**{c.verdict}**" if c.verdict != PASS else c.verdict, f"`{c.student}`", f"`{c.protocol}`", seeds(c), f"{c.n:,}",
            number(c.before), number(c.after), f"{number(c.measured.difference, signed=True)} {interval(c)}",
            number(c.margin), len(c.worse), len(c.better),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for c in ordered(outcome):
        if c.verdict != PASS:
            lines += ["", f"<details><summary>{_markdown(c.verdict + ' ' + explain(c))}</summary>", ""]
            for way, flips in (("worse", c.worse), ("better", c.better)):
                lines += [f"- {way}: {_markdown(sentence(flip))}" for flip in flips[:_LISTED]]
                lines += [f"- {way}: {len(flips) - _LISTED} more"] if len(flips) > _LISTED else []
            lines += ["", "</details>"]
    lines += [""] + [f"{_markdown(line)}  " for line in (origin(baseline), changes, new(outcome), method(outcome)) if line]
    return lines


def _markdown(text: str) -> str:
    """Escape what a reply could contain."""
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, entity)
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", text)
