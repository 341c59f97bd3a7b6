"""What the second to the twelfth student cost: ``python benchmarks/many_students.py``, minutes of one core, no network.

Twelve students of the embedded suite, each beside a `ce` student: what it takes to start and to save one, and a step of each in
rounds on the same batches. A student's cost is both, at the preset's number of steps; what is made once for all of them
(teacher's signal, tokens) is given beside it.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is imported

import typer
from rich.console import Console
from rich.progress import Progress

import result_file
from harness import base, cli

COMMAND = "benchmarks/many_students.py"
FIRST = "ce"
OTHERS = (
    "ce+fkl@fixed", "ce+fkl@task", "ce+fkl@instance", "ce+cosine_probs@fixed", "ce+cosine_probs@task",
    "ce+cosine_probs@instance", "fkl", "ce+rkl@fixed", "ce+js@task", "ce+skew_fkl@instance", "ce+taid@fixed",
)  # fmt: skip
#: What the issue allows a student, over a `ce` student's own cost.
TARGET = 1.15
TEXT = (
    "Cost of a student over a `ce` student's, training of the miniature preset ({steps} steps of {rows} packed rows; a `ce`"
    " student's step takes {step_ms:.0f} ms, its start and end {ends:.1f} s, so {whole:.0f} s in all). Step: median and"
    " quartiles over {rounds} rounds, each over the mean of the `ce` steps before and after it. Whole: start, end and {steps}"
    " steps. Processor time of one thread. Once for all students: the teacher's signal, {signal:.1f} s for {samples} samples."
    " Target: at most {target:.2f}."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
console = Console()
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Timed steps of each student.")]
Images = Annotated[int, typer.Option("--images", min=1, help="Training images per benchmark.")]
Out = Annotated[Path, typer.Option("--out", help="JSON file; the table goes beside it as Markdown.")]


@app.command(help=__doc__)
def many_students(rounds: Rounds = 8, images: Images = 200, out: Out = Path("runs/benchmarks/many_students.json")) -> None:
    """Measure, print and write."""
    result_file.check(out)
    base.offline()
    base.shim()
    import measuring
    import student_steps

    student_steps.one_thread()
    result: dict[str, Any] = {"command": " ".join(["python", COMMAND, *sys.argv[1:]]), **measuring.machine()}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("students, in rounds", total=rounds + 1)
        with student_steps.workload(images, rounds) as work:
            result |= _measure(work, lambda: bar.advance(task))
    page = _page(result)
    base.write_json(out, result)
    base.write_text(out.with_suffix(".md"), page)
    console.print(page, markup=False, highlight=False, soft_wrap=True)


def _measure(work: Any, tick: Callable[[], None]) -> dict[str, Any]:
    """Start all students, step them in rounds beside the first, and save each."""
    import measuring
    import student_steps
    from students import distil

    ratios: dict[str, list[float]] = {name: [] for name in OTHERS}
    steps, ends = [], {}
    with TemporaryDirectory() as name, distil._deterministic():
        folder, students = Path(name), {}
        for number, recipe in enumerate((FIRST, FIRST, *OTHERS)):  # the very first pays for imports, and is dropped
            started = time.process_time()
            students[recipe] = student_steps.Clocked(recipe, work, folder / str(number), student_steps.Unread)
            ends[recipe] = time.process_time() - started
        for number, members in enumerate(work.batches):
            before = students[FIRST].step(members)[0]
            for recipe in OTHERS:
                own = students[recipe].step(members)[0]
                after = students[FIRST].step(members)[0]
                if number:
                    ratios[recipe].append(2 * own / (before + after))
                    steps.append(after)
                before = after
            tick()
        for recipe, student in students.items():
            ends[recipe] += measuring.processor_seconds(student.training.save)
    return {
        "rounds": len(work.batches) - 1, "rows": work.options.rows, "steps": work.preset.training.steps,
        "samples": len(work.inputs.data), "signal_seconds": work.signal_seconds, "first_step": statistics.median(steps),
        "ends": ends, "ratios": {recipe: measuring.spread(values) for recipe, values in ratios.items()},
    }  # fmt: skip


def _page(result: dict[str, Any]) -> str:
    """Lay the result out."""
    import measuring

    first = result["ends"][FIRST] + result["steps"] * result["first_step"]
    rows = []
    for recipe, found in result["ratios"].items():
        whole = (result["ends"][recipe] + result["steps"] * result["first_step"] * found["median"]) / first
        mark = "" if whole <= TARGET else " (above the target)"
        rows.append(
            [recipe, f"{found['median']:.3f}", f"{found['low']:.3f} - {found['high']:.3f}", f"{result['ends'][recipe]:.1f}"]
        )
        rows[-1].append(f"{whole:.3f}{mark}")
    text = TEXT.format(
        step_ms=1e3 * result["first_step"], ends=result["ends"][FIRST], whole=first, signal=result["signal_seconds"],
        target=TARGET, **{k: result[k] for k in ("rounds", "rows", "steps", "samples")},
    )  # fmt: skip
    header = ["student", "step", "quartiles", "start and end, s", "whole"]
    parts = ["# The second to the twelfth student", measuring.where(result["command"], result), text]
    return "\n\n".join([*parts, measuring.table(header, rows)]) + "\n"


if __name__ == "__main__":
    cli.main(app, COMMAND)
