"""Where numbers come from: what every cell, figure and page says of its run, and how a report is made again."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.frames import Run
from reports.sentences import Conclusion

_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Origin:
    """What a number's run is called, and what it was made from: stands beside every cell of a CSV.

    Attributes:
        run: its name in this report; digest: SHA-256 of its manifest; commit: of the harness that made it, None if unknown.
    """

    run: str
    digest: str
    commit: str | None

    @property
    def sentence(self) -> str:
        """One line for under a table or a figure."""
        commit = (self.commit or _UNKNOWN)[:12] + ("-modified" if (self.commit or "").endswith("-modified") else "")
        return f"Run `{self.run}`, manifest {self.digest[:16]}, harness {commit}."


def origin(run: Run) -> Origin:
    """Return where a run's numbers come from."""
    return Origin(run.name, run.digest, run.manifest.git_commit)


def caption(run: Run) -> str:
    """Return what a figure says of its run: the same, and the versions of the protocols; captions know no code style."""
    versions = ", ".join(f"{p.name} {p.version}" for p in run.protocols)
    return origin(run).sentence.replace("`", "") + (f" Protocol versions: {versions}." if versions else "")


def regenerate(runs: Sequence[Run], options: Sequence[str] = ()) -> str:
    """Return the command that makes this report again, from the folder that holds the (first) run."""
    home = runs[0].folder.resolve().parent
    named = [part for run in runs for part in ("--run", os.path.relpath(run.folder.resolve(), home))]
    return shlex.join(["python", "-m", "harness.report", *named, *options])


def made_by(run: Run) -> str:
    """Return the command that made a run, as its manifest has it."""
    command = run.manifest.command
    return (command if isinstance(command, str) else shlex.join(command or ())) or _UNKNOWN


def told(run: Run, resamples: int, several: bool = False) -> list[tuple[str, str]]:
    """Where the numbers come from; "not recorded" where the manifest is silent. Of ``several`` runs, each line names its."""
    m = run.manifest
    data = ", ".join(f"{k} {v}" for k, v in m.preset.data.items())
    weights = ", ".join(f"{k} {str(v)[:12]}" for k, v in m.weights.items())
    protocols = "; ".join(
        f"{p.name} version {p.version}, data {(m.protocols[p.name].digest or _UNKNOWN)[:12]}" for p in run.protocols
    )
    lines = [
        ("Run", f"{run.name} (preset {m.preset.name})"),
        ("Manifest digest", run.digest[:16]),
        ("Harness commit", m.git_commit or _UNKNOWN),
        ("Protocols", protocols or _UNKNOWN),
        ("Training data", data or _UNKNOWN),
        ("Weights", weights or _UNKNOWN),
        ("Limit", "none" if m.limit is None else f"first {m.limit} clusters of every benchmark"),
        ("Changed by hand", ", ".join(f"{k} {v}" for k, v in m.overrides.items()) or "nothing"),
        ("Software", ", ".join(f"{k} {v}" for k, v in m.versions.items()) or _UNKNOWN),
        ("Hardware", ", ".join(f"{k} {v}" for k, v in m.hardware.items()) or _UNKNOWN),
        ("Evaluations", _evaluations(run)),
        *((("Teacher's signal", "; ".join(m.signal)),) if m.signal else ()),
        *((("Vision tower", "; ".join(m.vision)),) if m.vision else ()),
        ("Threads per student", _UNKNOWN if m.threads is None else str(m.threads)),
        ("Seeds", ", ".join(str(s) for s in m.seeds) or "none, nothing was trained"),
        ("Resamples", f"{resamples:,}"),
        ("Made by", made_by(run)),
    ]
    return [(f"{label}, {run.name}" if several else label, value) for label, value in lines]


def _evaluations(run: Run) -> str:
    """How replies were made: batch size, attention kernel, arithmetic and padding, with the number of evaluations."""
    counts = Counter(_way(how) if how else _UNKNOWN for how in run.asked)
    said = "; ".join(f"{n} with {way}" if way != _UNKNOWN else f"{n} {way}" for way, n in counts.most_common())
    again = sum((how.get("replies") or {}).get("made_again_alone", 0) for how in run.asked)
    return (said or _UNKNOWN) + (f"; {again:,} replies near a tie were made again alone" if again else "")


def _way(how: Mapping[str, Any]) -> str:
    replies, gold = how.get("replies"), how.get("gold") or {}
    padded = [] if replies is None or replies["padding"] == "none" else [f"replies padded on the {replies['padding']}"]
    if gold.get("padding", "none") != "none":
        padded.append(f"gold replies padded on the {gold['padding']}")
    if replies is None:  # an attempt that was stopped made some of them
        padded.append("padding of the replies not recorded")
    return f"batches of at most {how['batch_size']}, attention {how['attention']}, {how['dtype']} on {how['device']}, " + (
        " and ".join(padded) or "no padding"
    )


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The runs in a handful of numbers, for the head of the page."""
    students = {s for run in runs for s in run.manifest.students}
    protocols = {p.name for run in runs for p in run.protocols}
    asked = {key for run in runs if run.scores is not None for key in _asked(run)}
    seeds = {seed for run in runs for seed in run.manifest.seeds}
    counts = [("student", len(students)), ("benchmark", len(protocols))]
    counts += [("question", len(asked))] if asked else []
    counts.append(("seed", len(seeds)))
    if not students:
        counts = [("model", len({s for run in runs for s in run.kinds})), *counts[1:-1]]
    counts = [("run", len(runs)), *counts] if len(runs) > 1 else counts
    return [(word if n == 1 else f"{word}s", f"{n:,}") for word, n in counts]


def _asked(run: Run) -> set[tuple[str, str]]:
    assert run.scores is not None  # the caller has looked
    frame = run.scores[["protocol", "id"]].drop_duplicates()
    return set(zip(frame["protocol"], frame["id"], strict=True))


def lead(run: Run) -> str:
    """The title of the report."""
    title = run.manifest.preset.title
    return f"{title} ({run.suite})" if run.suite and "miniature" not in title.lower() else title


def ordered(found: Sequence[Conclusion]) -> list[Conclusion]:
    """Findings first, caveats last, otherwise as given."""
    return [c for c in found if c.verdict != "caveat"] + [c for c in found if c.verdict == "caveat"]
