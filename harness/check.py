"""``python -m harness.check``: the gate of a CI. Is a run worse than its baseline?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from harness import cli
from harness.base import UserError, nearest, offline

if TYPE_CHECKING:
    from harness.baseline import Baseline
    from reports.frames import Run

MODULE = "harness.check"
_HELP = """Compare a run with a baseline, question by question; or take a new baseline.

Exit code 0: PASS. 1: FAIL, something is shown to be worse by more than its margin. 3: INCONCLUSIVE, too few questions to say.
2: bad input, such as other questions than the baseline's.

Examples:

  python -m harness.check --run runs/smoke --baseline smoke.baseline

  python -m harness.check --run runs/smoke --baseline smoke.baseline --update --reason 'new teacher'

  python -m harness.check --run runs/smoke --baseline smoke.baseline --junit gate.xml --github
"""
app = typer.Typer(add_completion=False, rich_markup_mode=None)

RunFolder = Annotated[Path | None, typer.Option("--run", help="A run folder.")]
BaselineFile = Annotated[Path | None, typer.Option("--baseline", help="The baseline, a small file to be committed.")]
Update = Annotated[bool, typer.Option("--update", help="Write the baseline from the run instead of comparing.")]
Reason = Annotated[str | None, typer.Option(help="Why the baseline changes; recorded in it. Needed by --update.")]
MarginsFile = Annotated[Path | None, typer.Option("--margins", help="A YAML file of margins. Default: harness/margins.yaml.")]
Students = Annotated[str | None, typer.Option(help="Compare these only: names or globs of the baseline's, a comma list.")]
Seeds = Annotated[str | None, typer.Option(help="Compare the mean over these seeds of the run, such as 0,1. Default: all.")]
Junit = Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML.")]
Flips = Annotated[Path | None, typer.Option("--flips", help="Write all questions whose score changed, as JSON lines.")]
GitHub = Annotated[bool, typer.Option("--github", help="Print annotations and append a step summary.")]

_LOG_WIDTH = 160
_CODES = {"PASS": cli.DONE, "FAIL": cli.GATE_FAILED, "INCONCLUSIVE": cli.INCONCLUSIVE}


@app.command(help=_HELP)
def check(
    run: RunFolder = None,
    baseline: BaselineFile = None,
    update: Update = False,
    reason: Reason = None,
    margins: MarginsFile = None,
    students: Students = None,
    seeds: Seeds = None,
    junit: Junit = None,
    flips: Flips = None,
    github: GitHub = False,
) -> int:
    """Parse the command line, compare, and return the exit code."""
    offline()
    if run is None:
        raise UserError("--run is missing: name a run folder, such as --run runs/smoke")
    if baseline is None:
        raise UserError("--baseline is missing: name a file, such as --baseline smoke.baseline")
    if reason is not None and not update:
        raise UserError("--reason says why a baseline changes; give it together with --update")
    if not update:
        return _compare(_run(run), baseline, margins, students, seeds, junit, flips, github)
    if reason is None:
        raise UserError("--update needs --reason TEXT: say in a sentence why the baseline changes")
    unused = {
        "--margins": margins,
        "--students": students,
        "--seeds": seeds,
        "--junit": junit,
        "--flips": flips,
        "--github": github or None,
    }
    given = [name for name, value in unused.items() if value is not None]
    if given:
        raise UserError(f"--update compares nothing; leave out {', '.join(given)}")
    _update(run, baseline, reason)
    return cli.DONE


def _compare(
    run: Run,
    file: Path,
    margins: Path | None,
    students: str | None,
    seeds: str | None,
    junit: Path | None,
    flips: Path | None,
    github: bool,
) -> int:
    from harness import baseline, gate_output, gate_run
    from harness.margins import load

    summary = gate_output.summary_path(os.environ) if github else None
    limits, held = load(margins), baseline.load(file)
    run = run if seeds is None else _of_seeds(run, seeds)
    outcome = gate_run.compare(run, held, limits, None if students is None else _chosen(students, held))
    changes = gate_output.environment(held, run.manifest.versions, run.manifest.hardware.get("processor"))
    # A log has no width of its own; 80 columns would fold six protocols.
    wide = cli.console if cli.console.is_terminal or "COLUMNS" in os.environ else Console(width=_LOG_WIDTH)
    gate_output.show(wide, outcome, held, changes)
    if junit is not None:
        gate_output.write_junit(junit, outcome)
    if flips is not None:
        gate_output.write_flips(flips, outcome)
    if summary is not None:
        gate_output.write_summary(summary, outcome, held, changes)
        for line in gate_output.commands(outcome):
            typer.echo(line)
    return _CODES[outcome.verdict]


def _update(folder: Path, file: Path, reason: str) -> None:
    from harness import baseline

    before = baseline.load(file).header.reason if file.is_file() else None
    made = baseline.take(_run(folder), reason)
    baseline.save(made, file)
    answers = sum(len(block) for block in made.codes.values())
    lines = [
        f"{file}: {len(made.students())} students, {len(made.header.protocols)} protocols, {answers:,} answers in"
        f" {file.stat().st_size:,} bytes",
        f"reason: {made.header.reason}",
        f"commit: {made.header.git_commit or 'unknown'}, manifest: {made.header.manifest}",
    ]
    for line in [*lines, *([f"replaces: {before}"] if before is not None else [])]:
        cli.console.print(line, soft_wrap=True, highlight=False, markup=False)


def _run(folder: Path) -> Run:
    from harness import store
    from reports import frames

    root = folder.expanduser().resolve()
    store.read_preset(root)
    return frames.load(root)


def _of_seeds(run: Run, text: str) -> Run:
    """Leave out the trainings of other seeds; given models have none and stay."""
    import dataclasses

    from harness import selection

    wanted = selection.seeds(text)
    if run.scores is None:
        raise UserError(f"{run.folder} holds no scores.parquet: finish the run first")
    held = sorted(int(seed) for seed in run.scores["seed"].dropna().unique())
    for seed in wanted:
        if seed not in held:
            raise UserError(f"--seeds: {run.folder} holds no seed {seed}; it holds: {', '.join(map(str, held)) or 'none'}")
    kept = run.scores["seed"].isna() | run.scores["seed"].isin(wanted)
    return dataclasses.replace(run, scores=run.scores[kept])


def _chosen(text: str, held: Baseline) -> list[str]:
    """Resolve names and globs against the baseline's students."""
    import fnmatch

    known = held.students()
    chosen: list[str] = []
    for part in (piece.strip() for piece in text.split(",")):
        found = [name for name in known if fnmatch.fnmatchcase(name, part)]
        if not found:
            close = nearest(part, known)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise UserError(f"--students: {part!r} matches none of the baseline.{hint} It holds: {', '.join(known)}")
        chosen += found
    return chosen


if __name__ == "__main__":
    cli.main(app, MODULE)
