"""Where numbers come from: what every cell, figure and page says of its run, and how a report is made again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

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


def regenerate(runs: Sequence[Run], options: Sequence[str] = ()) -> str:
    """Return the command that makes this report again, from the folder that holds the (first) run."""
    home = runs[0].folder.resolve().parent
    named = [part for run in runs for part in ("--run", os.path.relpath(run.folder.resolve(), home))]
    return shlex.join(["python", "-m", "harness.report", *named, *options])


def told(run: Run, resamples: int) -> list[tuple[str, str]]:
    """Where the numbers come from; "not recorded" where the manifest is silent."""
    m = run.manifest
    given = m.command if isinstance(m.command, str) else " ".join(m.command or ())
    data = ", ".join(f"{k} {v}" for k, v in m.preset.data.items())
    weights = ", ".join(f"{k} {str(v)[:12]}" for k, v in m.weights.items())
    protocols = "; ".join(
        f"{p.name} version {p.version}, data {(m.protocols[p.name].digest or _UNKNOWN)[:12]}" for p in run.protocols
    )
    return [
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
        ("Threads per student", _UNKNOWN if m.threads is None else str(m.threads)),
        ("Seeds", ", ".join(str(s) for s in m.seeds) or "none, nothing was trained"),
        ("Resamples", f"{resamples:,}"),
        ("Made by", given or _UNKNOWN),
    ]


def facts(run: Run) -> list[tuple[str, str]]:
    """The run in a handful of numbers, for the head of the page."""
    counts = [("student", len(run.manifest.students)), ("benchmark", len(run.protocols))]
    if run.scores is not None:
        counts.append(("question", len(run.scores.drop_duplicates(["protocol", "id"]))))
    counts.append(("seed", len(run.manifest.seeds)))
    if not run.manifest.students:
        counts = [("model", len(run.kinds)), *counts[1:-1]]
    return [(word if n == 1 else f"{word}s", f"{n:,}") for word, n in counts]


def lead(run: Run) -> str:
    """The title of the report."""
    title = run.manifest.preset.title
    return f"{title} ({run.suite})" if run.suite and "miniature" not in title.lower() else title


def ordered(found: Sequence[Conclusion]) -> list[Conclusion]:
    """Findings first, caveats last, otherwise as given."""
    return [c for c in found if c.verdict != "caveat"] + [c for c in found if c.verdict == "caveat"]
