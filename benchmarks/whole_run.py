"""A whole run of the project beside a plain pipeline: ``python benchmarks/whole_run.py``, no network, hours at full size.

One command trains and evaluates every student (``harness.run --students all``); benchmarks/plain_run.py does the same as a
careful person writes it: one question per row, teacher live per student, full-sequence logits, per-position energies, batch-1
evaluation. Both are processes of one thread on this machine, one after the other or, with ``--together``, at the same time, so
that other processes of the machine slow both; the same samples in the same order from the same start.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from harness import base, cli, manifest, selection, store
from harness.config import Preset, load_preset, load_recipe

COMMAND = "benchmarks/whole_run.py"
HERE = Path(__file__).resolve().parent
#: What the issue asks for.
TARGET, STEPS, GAP = 3.0, 20, 1e-5
#: Stages of a run that the plain pipeline has no counterpart of: it writes no report and no pages of questions.
BEYOND = ("questions", "collect", "report")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
console = Console()
Out = Annotated[Path, typer.Option("--out", help="Folder for both sides, whole_run.json and whole_run.md; new or empty.")]
PresetName = Annotated[str, typer.Option("--preset", help="A preset on packed data.")]
Students = Annotated[str, typer.Option("--students", help="As of harness.run.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps of each student. Default: the preset's.")]
Images = Annotated[int | None, typer.Option("--images", min=1, help="Training images per benchmark. Default: the preset's.")]
PlainRows = Annotated[str, typer.Option("--plain-rows", help="single: the plain side's rows are questions; packed: as ours.")]
Together = Annotated[bool, typer.Option("--together", help="The plain side starts as soon as ours has made the data.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Whole clusters of each protocol. Default: all.")]


@app.command(help=__doc__)
def whole(
    out: Out = Path("runs/benchmarks/whole_run"),
    preset: PresetName = "miniature",
    students: Students = "all",
    steps: Steps = None,
    images: Images = None,
    limit: Limit = None,
    plain_rows: PlainRows = "single",
    together: Together = False,
) -> None:
    """Measure both sides, compare them, print and write."""
    out = out.expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise base.UserError(f"--out is {str(out)!r}; allowed: a folder that is new or empty")
    chosen = load_preset(preset)
    names = [recipe.name for recipe in selection.students(students, chosen)]
    _refuse(chosen, names, plain_rows)
    out.mkdir(parents=True, exist_ok=True)
    path = _preset(out, preset, chosen, steps, images, limit)
    (out / "plain").mkdir()
    job = {"preset": str(path), "students": names, "run": str(out / "run"), "out": str(out / "plain"), "rows": plain_rows}
    base.write_json(out / "plain" / "job.json", job)
    before = os.getloadavg()
    ours, plain = _both(
        ["-m", "harness.run", "--preset", path, "--students", ",".join(names), "--out", out / "run"],
        [HERE / "plain_run.py", out / "plain" / "job.json"], out / "run" if together else None,
    )  # fmt: skip
    stages = {entry.stage: entry.seconds for entry in store.entries(out / "run")}
    found = base.read_json(out / "plain" / "plain.json")
    result = {
        "command": " ".join(["python", COMMAND, *sys.argv[1:]]),
        "git_commit": manifest.git_commit(),
        "versions": manifest.versions(),
        "hardware": manifest.hardware("cpu"),
        "threads": 1,
        "load": {"before": before, "after": os.getloadavg()},
        "plain_rows": plain_rows,
        "together": together,
        "students": names,
        "target": TARGET,
        **_times(ours, plain, stages),
        "parts": {"ours": _by_kind(stages), "plain": found["seconds"], "plain_models": found["models"]},
        "losses": _losses(out / "run", found["losses"]),
        "scores": _scores(out / "run", found["scores"], found["replies"]),
    }
    base.write_json(out / "whole_run.json", result)
    base.write_text(out / "whole_run.md", _markdown(result))
    _print(result)
    console.print(f"{out / 'whole_run.json'}\n{out / 'whole_run.md'}", soft_wrap=True, highlight=False, markup=False)


def _preset(out: Path, name: str, chosen: Preset, steps: int | None, images: int | None, limit: int | None) -> Path:
    """Write the preset of both sides: one worker, and what was scaled down."""
    given: dict[str, Any] = {"extends": name, "name": "whole-run", "workers": 1}
    if steps is not None:
        given["training"] = {"steps": steps}
    if images is not None:
        given["data"] = {"images": images}
    if limit is not None:
        given["evaluation"] = {"limit": limit}
    if chosen.seeds != (0,):
        given["seeds"] = [0]
    path = out / "whole-run.yaml"
    base.write_text(path, yaml.safe_dump(given))
    return path


def _refuse(preset: Preset, names: Sequence[str], rows: str) -> None:
    """Refuse what the plain pipeline cannot do before anything is written."""
    base.shim()
    from plain_run import ROWS, refuse

    if rows not in ROWS:
        raise base.unknown("plain rows", rows, ROWS)
    for name in names:
        refuse(load_recipe(name), preset)


@dataclass(frozen=True)
class Took:
    """Seconds of a process and its children: by the clock, and of the processor."""

    wall: float
    processor: float


class Side:
    """One side's process: Python with ``arguments``."""

    def __init__(self, what: str, arguments: Sequence[object]) -> None:
        console.print(f"{what} ...", highlight=False)
        self.what, self.started = what, time.perf_counter()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process ended
        self.process = subprocess.Popen([sys.executable, *map(str, arguments)], stderr=self.errors)

    def wait(self) -> Took:
        """Wait for its end and return what it and its children took.

        Raises:
            UserError: with the last line of its errors, when it failed.
        """
        _, status, used = os.wait4(self.process.pid, 0)
        wall, code = time.perf_counter() - self.started, os.waitstatus_to_exitcode(status)
        self.process.returncode = code  # somebody else has waited
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or ["no message"]
        self.errors.close()
        if code != 0:
            raise base.UserError(f"{self.what} ended with {code}: {lines[-1]}")
        return Took(wall, used.ru_utime + used.ru_stime)


def _both(ours: Sequence[object], plain: Sequence[object], run: Path | None) -> tuple[Took, Took]:
    """Run both sides, the plain one after the end of ours, or as soon as the data are complete in the folder ``run``."""
    first = Side("harness.run", ours)
    if run is None:
        took = first.wait()
        return took, Side("plain", plain).wait()
    while not (run / "stages" / "data.json").is_file() and first.process.poll() is None:
        time.sleep(0.5)
    if first.process.returncode is not None:
        raise base.UserError(f"harness.run ended with {first.process.returncode} before its data were made")
    sides = (first, Side("plain", plain))
    with ThreadPoolExecutor(len(sides)) as pool:
        results = [pool.submit(side.wait) for side in sides]
        try:
            wait(results, return_when=FIRST_EXCEPTION)
        finally:  # one that failed, or an interruption, ends the other
            for side, made in zip(sides, results, strict=True):
                if not made.done():
                    side.process.terminate()
    return results[0].result(), results[1].result()


def _by_kind(stages: Mapping[str, float]) -> dict[str, float]:
    """Sum seconds by the first word of a stage's name."""
    kinds: dict[str, float] = {}
    for name, seconds in stages.items():
        kind = "signal" if name.startswith("teacher/") else name.partition("/")[0]
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    return kinds


def _times(ours: Took, plain: Took, stages: Mapping[str, float]) -> dict[str, Any]:
    """Ratios: of the whole commands, and without what only one side does. The data are made by ours and count for both."""
    clock, shared = sum(stages.values()), stages.get("data", 0.0)
    # stages record the clock, which other processes of the machine stretch; their shares of it hold for the processor too
    data = ours.processor * shared / clock
    beyond = ours.processor * sum(seconds for name, seconds in stages.items() if name in BEYOND) / clock
    return {
        "seconds": {"ours": vars(ours), "plain": vars(plain), "data_for_both": data, "ours_beyond_plain": beyond},
        "ratio": (plain.processor + data) / ours.processor,
        "ratio_by_the_clock": (plain.wall + shared) / ours.wall,
        "ratio_without_report": (plain.processor + data) / (ours.processor - beyond),
    }


def _losses(run: Path, plain: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Per student, the largest gap of any channel's loss over the first steps and all, and where it passes 1e-5.

    Beside them that of the objective, which adds what the weighting makes of the losses: weights, and its regulariser.
    """
    rows = []
    for name, records in plain.items():
        ours = base.read_jsonl(run / "students" / name / "seed0" / "dynamics.jsonl")
        pairs = list(zip(ours, records, strict=True))
        gaps = [max(abs(mine["loss"][channel] - value) for channel, value in other["loss"].items()) for mine, other in pairs]
        total = [abs(mine["total"] - other["total"]) for mine, other in pairs]
        first = next((step for step, gap in enumerate(gaps, start=1) if gap > GAP), None)
        rows.append({
            "student": name, "steps": len(gaps), "gap_of_first_steps": max(gaps[:STEPS]), "gap_of_all_steps": max(gaps),
            "first_step_beyond_1e-5": first, "objective_gap_of_first_steps": max(total[:STEPS]),
        })  # fmt: skip
    return rows


def _scores(run: Path, plain: Mapping[str, Mapping[str, float]], replies: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both sides' scores, and the share of equal replies."""
    import tasks
    from tasks.aggregate import aggregate

    pd: Any = __import__("pandas")
    frame, rows = pd.read_parquet(run / "scores.parquet"), []
    for (name, found), protocol in itertools.product(plain.items(), next(iter(plain.values()))):
        part = frame[(frame["student"] == name) & (frame["protocol"] == protocol)]
        ours = base.read_jsonl(run / "replies" / name / "seed0" / f"{protocol}.jsonl")
        equal = [a["reply"] == b for a, b in zip(ours, replies[name][protocol], strict=True)]
        rows.append({
            "student": name, "protocol": protocol, "ours": aggregate(part, tasks.protocol(protocol).aggregation),
            "plain": found[protocol], "questions": len(equal), "equal_replies": sum(equal) / len(equal),
        })  # fmt: skip
    return rows


def _sections(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return tables: title, header, rows."""
    seconds = result["seconds"]
    sides = [
        [side, f"{seconds[side]['processor']:.1f}", f"{seconds[side]['wall']:.1f}"] for side in ("ours", "plain")
    ]  # fmt: skip
    sides.append(["making the data, added to plain", f"{seconds['data_for_both']:.1f}", ""])
    title = (
        f"Whole run of {len(result['students'])} students, plain rows {result['plain_rows']}:"
        f" plain / ours = {result['ratio']:.2f} of processor time,"
        f" {result['ratio_by_the_clock']:.2f} by the clock, {result['ratio_without_report']:.2f} without the report and pages"
        f" that only ours writes ({seconds['ours_beyond_plain']:.1f} s); target {result['target']:.0f}"
    )
    parts = [
        [side, name, f"{value:.1f}"]
        for side in ("ours", "plain")
        for name, value in sorted(result["parts"][side].items(), key=lambda item: -item[1])
    ]
    losses = [
        [row["student"], f"{row['gap_of_first_steps']:.1e}", f"{row['gap_of_all_steps']:.1e}",
         "-" if row["first_step_beyond_1e-5"] is None else str(row["first_step_beyond_1e-5"]),
         f"{row['objective_gap_of_first_steps']:.1e}"]
        for row in result["losses"]
    ]  # fmt: skip
    scores = [
        [row["student"], row["protocol"], f"{row['ours']:.1f}", f"{row['plain']:.1f}", f"{100 * row['equal_replies']:.1f}"]
        for row in result["scores"]
    ]
    return [
        (title, ["side", "processor s", "clock s"], sides),
        ("Where the seconds go (ours: clock of the stages; plain: processor)", ["side", "part", "s"], parts),
        (
            f"Largest gap of losses, first {STEPS} steps and all; of the objective, first {STEPS} steps",
            ["student", "first", "all", "first beyond 1e-5", "objective, first"],
            losses,
        ),
        ("Scores", ["student", "protocol", "ours", "plain", "equal replies %"], scores),
    ]


def _markdown(result: Mapping[str, Any]) -> str:
    lines = [f"`{result['command']}`, {result['hardware']['processor']}, one thread, commit {result['git_commit']}", ""]
    for title, header, rows in _sections(result):
        lines += [title, "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join(lines)


def _print(result: Mapping[str, Any]) -> None:
    for title, header, rows in _sections(result):
        table = Table(title=title, title_justify="left")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    cli.main(app, COMMAND)
