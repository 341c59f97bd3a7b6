"""What losses and weightings cost: ``python benchmarks/losses.py``, about three minutes of one core, no network.

1. A student's optimiser step with each energy (``ce+X@fixed``) and each weighting (``ce+fkl@X``), relative to a ``ce`` student
   that reads the teacher's cached logits at every step as they all do.
2. Time and memory of each energy's forward and backward pass, beside a plain full-sequence implementation of the same loss.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # both before torch is imported: its profiler logs every start and stop
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import result_file
from harness import base, cli, manifest
from students import energies as energy_files
from students import weightings as weighting_files

COMMAND = "benchmarks/losses.py"
STEPS = (
    "A student's optimiser step over that of a `ce` student that reads the teacher's cached signal at every step. Energies:"
    " ce+X@fixed, weightings: ce+fkl@X; both include the energy's own cost. Every round steps every student on the same "
    "batch ({rows} packed rows, {samples:.0f} samples with {tokens:.0f} supervised tokens on average), between two steps of"
    " the baseline, which took {processor_ms:.0f} ms (median). Median and quartiles over {rounds} rounds after one to warm "
    "up (which holds the single pass before step 1 that weightings which read losses ask for). Processor time of one "
    "thread; the ratio by the clock stands beside it. Target: at most {target:.2f} for what needs no extra pass."
)
LOSSES = (
    "Forward and backward pass of one loss, per supervised token, shape '{name}': {rows} rows x {length} positions, "
    "{supervised} of them supervised in each, V = {vocabulary}, states of width {width}. Here: states gathered before the "
    "head, fused slopes. Plain: all positions through the head, softmax and then log, masks by multiplication "
    "(benchmarks/plain_losses.py); values and gradients of both agree. Kept: KiB that autograd holds until the backward "
    "pass. Peak: the most KiB allocated at once. Inputs (states, head, the teacher's logits) are not counted."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
console = Console()
Steps = Annotated[int, typer.Option("--steps", min=1, help="Rounds of timed optimiser steps.")]
Out = Annotated[Path, typer.Option("--out", help="JSON file; the tables go beside it as Markdown.")]
Energies = Annotated[str, typer.Option("--energies", help="A comma list, or 'all'.")]
Weightings = Annotated[str, typer.Option("--weightings", help="A comma list, or 'all'.")]
Images = Annotated[int, typer.Option("--images", min=1, help="Training images per benchmark.")]


@app.command(help=__doc__)
def losses(
    steps: Steps = 12,
    out: Out = Path("runs/benchmarks/losses.json"),
    energies: Energies = "all",
    weightings: Weightings = "all",
    images: Images = 300,
) -> None:
    """Measure, print and write."""
    chosen = _chosen("energy", energies, energy_files.names()), _chosen("weighting", weightings, weighting_files.names())
    result_file.check(out)
    result = _measure(steps, images, *chosen)
    sections = _sections(result)
    for title, header, rows in sections:
        _print(title, header, rows)
    base.write_json(out, result)
    base.write_text(out.with_suffix(".md"), _markdown(result, sections))
    console.print(f"{out}\n{out.with_suffix('.md')}", soft_wrap=True, highlight=False, markup=False)


def _chosen(kind: str, text: str, known: Sequence[str]) -> list[str]:
    """Read a comma list of names."""
    names = list(known) if text == "all" else [word.strip() for word in text.split(",")]
    for name in names:
        if name not in known:
            raise base.unknown(kind, name, [*known, "all"])
    return names


def _measure(steps: int, images: int, energies: Sequence[str], weightings: Sequence[str]) -> dict[str, Any]:
    """Run both parts."""
    base.offline()
    base.shim()
    import loss_level
    import student_steps

    student_steps.one_thread()
    compared = ["ce", *(name for name in energies if name in loss_level.comparable())]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("teacher's signal, cached once", total=steps + 1)
        with student_steps.workload(images, steps) as work:
            bar.update(task, description="student's steps, in rounds")
            baseline, rows = student_steps.measure(work, energies, weightings, partial(bar.advance, task))
            shape = work.shape()
        measured, shapes = [], {}
        for case, repeats in ((shape, steps), (loss_level.LARGER, -(-steps // 4))):
            task = bar.add_task(f"losses, shape {case.name!r}", total=len(compared))
            measured += loss_level.measure(compared, case, repeats, partial(bar.advance, task))
            shapes[case.name] = vars(case)
    return {
        "command": " ".join(["python", COMMAND, *sys.argv[1:]]),
        "git_commit": manifest.git_commit(),
        "versions": manifest.versions(),
        "hardware": manifest.hardware("cpu"),
        "threads": 1,
        "target": student_steps.TARGET,
        "baseline": baseline,
        "steps": rows,
        "shapes": shapes,
        "losses": measured,
        "without_plain": [name for name in energies if name not in compared],
    }


Section = tuple[str, list[str], list[list[str]]]


def _sections(result: dict[str, Any]) -> list[Section]:
    """Lay the result out as tables: (what is compared, header, rows)."""
    header = ["", "ratio", "quartiles", "by clock"]
    rows = [_step_row(row) for row in result["steps"] if not row["extra_pass"]]
    sections = [(STEPS.format(target=result["target"], **result["baseline"]), header, rows)]
    rows = [[*_step_row(row), ", ".join(row["extra_pass"])] for row in result["steps"] if row["extra_pass"]]
    if rows:
        sections.append(("The same for what needs an extra pass.", [*header, "extra pass"], rows))
    header = ["", "µs", "plain", "x", "kept", "plain", "x", "peak", "plain", "x"]
    for name, shape in result["shapes"].items():
        rows = [_loss_row(row) for row in result["losses"] if row["shape"] == name]
        sections.append((LOSSES.format(**shape), header, rows))
    return sections


def _step_row(row: dict[str, Any]) -> list[str]:
    mark = " (above the target)" if row["above_target"] else ""
    name = row["name"] if row["kind"] == "baseline" else f"{row['kind']} {row['name']}"
    spread = f"{row['low']:.3f} - {row['high']:.3f}"
    return [name, f"{row['ratio']:.3f}{mark}", spread, f"{row['wall_ratio']:.3f}"]


def _loss_row(row: dict[str, Any]) -> list[str]:
    cells = [row["energy"]]
    for what, unit in (("microseconds", 1), ("kept_bytes", 1024), ("peak_bytes", 1024)):
        times = row[f"{what}_times"]
        cells += [_number(row[what] / unit), _number(row[f"plain_{what}"] / unit), "–" if times is None else f"{times:.1f}"]
    return cells


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _print(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console.print(title, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(header):
        words = name == "extra pass"
        table.add_column(name, justify="right" if number and not words else "left", no_wrap=not words, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, "", highlight=False)


def _markdown(result: dict[str, Any], sections: Sequence[Section]) -> str:
    """Write the tables, and what they were measured on."""
    machine = result["hardware"]
    lines = ["# What losses and weightings cost", "", f"`{result['command']}` at commit `{result['git_commit']}`, torch"]
    lines[-1] += f" {result['versions']['torch']}, one thread, on {machine['processor']} ({machine['cores']} cores)."
    for title, header, rows in sections:
        lines += ["", title, "", _line(header), _line(["---", *["---:"] * (len(header) - 1)]), *map(_line, rows)]
    if result["without_plain"]:
        lines += ["", f"No plain counterpart is written for: {', '.join(result['without_plain'])}."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cli.main(app, COMMAND)
