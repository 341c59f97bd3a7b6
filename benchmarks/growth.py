"""How time, memory and disk grow: ``python benchmarks/growth.py``, minutes of one core, 3 GB of memory, no network.

Over vocabulary, answer length, samples and students, here (benchmarks/step_case.py) and plain (benchmarks/plain_step.py), with
the floor beside it: matrix products that nobody can leave out, at the rate that this machine was measured at. Writes JSON, a
table and a plot.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # both before torch is imported: its profiler logs every start and stop
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import typer
from rich.console import Console
from rich.progress import Progress

import result_file
from harness import base, cli

COMMAND = "benchmarks/growth.py"
RECIPE = "ce+fkl@fixed"
VOCABULARIES, SHARES, SAMPLES, STUDENTS = (4096, 16384, 32000, 65536), (0.05, 0.2, 0.5, 0.9), (12, 24, 48), (1, 2, 4, 8, 12)
#: Vocabulary of the points that do not vary it, and passes over the samples that a student takes.
VOCABULARY, EPOCHS = 32000, 10
TEXT = (
    "One step of `{recipe}`, {rows} rows of {length} positions (twice as many where the answer's length varies), as in"
    " benchmarks/one_step.py: processor seconds (median of {rounds} steps after one), MiB allocated at once in a step, MiB of"
    " teacher's signal a sample. Floor: the matrix products of the student's own forward and backward pass at {gflops:.0f}"
    " GFLOP/s."
)
MANY = (
    "Seconds for n students that take {epochs} passes over {samples} samples each, from the seconds above that were measured:"
    " here the teacher's one pass and n times the steps, plain n times the plain steps. Floor: the products of the teacher's"
    " forward pass once and of n students. Disk is the signal's, whatever n."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
console = Console()
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Timed steps of each side at each point.")]
Out = Annotated[Path, typer.Option("--out", help="JSON file; table and plot go beside it.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="Models of a few thousand parameters: the same code in seconds.")]


@app.command(help=__doc__)
def growth(rounds: Rounds = 2, tiny: Tiny = False, out: Out = Path("runs/benchmarks/growth.json")) -> None:
    """Measure, print, write and draw."""
    result_file.check(out)
    base.offline()
    base.shim()
    import torch

    import measuring
    import step_case

    torch.set_num_threads(1)
    usual = step_case.TINY if tiny else step_case.Size(VOCABULARY)
    sizes = [60, 80] if tiny else list(VOCABULARIES)
    result: dict[str, Any] = {"command": " ".join(["python", COMMAND, *sys.argv[1:]]), **measuring.machine()}
    result |= {"size": asdict(usual), "rounds": rounds, "vocabulary": [], "answers": []}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("points", total=len(sizes) + len(SHARES) + len(SAMPLES))

        def points(name: str, shapes: Sequence[Any]) -> None:
            for shape in shapes:
                result[name].append(_point(shape, rounds))
                base.write_json(out, result)
                bar.advance(task)

        points("vocabulary", [replace(usual, vocabulary=size) for size in sizes])
        longest = usual.length - usual.image_tokens - step_case.FRAME - 1
        # twice the rows, so that the longest answers have more logits than are made at once
        lengths = [min(longest, round(share * usual.length)) for share in SHARES]
        points("answers", [replace(usual, rows=2 * usual.rows, supervised=length) for length in lengths])
        result["samples"] = [_pass(usual, count, lambda: bar.advance(task)) for count in SAMPLES]
    result["students"] = _students(result)
    page = _page(result)
    base.write_json(out, result)
    base.write_text(out.with_suffix(".md"), page)
    _draw(result, out.with_suffix(".png"))
    console.print(page, markup=False, highlight=False, soft_wrap=True)


def _point(size: Any, rounds: int) -> dict[str, Any]:
    """Step both sides on one size."""
    import measuring
    import plain_step
    import step_case

    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    with step_case.prepared(size, rounds + 1) as case, TemporaryDirectory() as folder:
        ours = step_case.Ours(case, RECIPE, Path(folder) / "ours")
        plain = plain_step.Plain(case.base, case.teacher, case.options.lr, case.options.clip)
        for members in case.batches:
            batch = case.batch(members)
            seconds["ours"].append(measuring.processor_seconds(partial(ours.step, members)))
            seconds["plain"].append(measuring.processor_seconds(partial(plain.step, batch)))
            ours.losses()
        peaks = {
            "ours": measuring.peak_bytes(lambda: ours.step(members)), "plain": measuring.peak_bytes(lambda: plain.step(batch))
        }  # fmt: skip
        # chunks are made twice; what nobody can leave out is made once
        ours.training.head.limit = 1 << 62
        counted = measuring.operations(lambda: ours.step(members))
        disk = case.signal_bytes / (size.rows * (rounds + 1))
    return {
        "vocabulary": size.vocabulary, "supervised": size.supervised, "peak_bytes": peaks, "operations": counted,
        "signal_bytes_a_sample": disk, "seconds": {side: statistics.median(values[1:]) for side, values in seconds.items()},
    }  # fmt: skip


def _pass(size: Any, count: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Let the teacher look at ``count`` samples once."""
    import torch

    import measuring
    import step_case
    from students import models

    with step_case.prepared(size, count // size.rows) as case:
        teacher = models.load(case.teacher)
        batch = case.batch(case.batches[0])
        with torch.no_grad():
            counted = measuring.operations(lambda: teacher.head(teacher.supervised(teacher.hidden(batch), batch)))
    tick()
    each = counted / size.rows
    return {"samples": count, "seconds": case.signal_seconds, "bytes": case.signal_bytes, "operations": each * count}


def _students(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Add up what n students take."""
    usual = result["size"]["vocabulary"]
    step = next((row for row in result["vocabulary"] if row["vocabulary"] == usual), result["vocabulary"][0])
    most, size, rate = result["samples"][-1], result["size"], result["operations_per_second"]
    steps = EPOCHS * most["samples"] / size["rows"]
    rows = []
    for n in STUDENTS:
        ours, plain = (n * steps * step["seconds"][side] for side in ("ours", "plain"))
        floor = (most["operations"] + n * steps * step["operations"]) / rate
        rows.append({"students": n, "ours": most["seconds"] + ours, "plain": plain, "floor": floor, "bytes": most["bytes"]})
    return rows


def _page(result: dict[str, Any]) -> str:
    """Lay the result out."""
    import measuring

    rate, size = result["operations_per_second"], result["size"]
    parts = ["# How time, memory and disk grow", measuring.where(result["command"], result)]
    parts.append(TEXT.format(recipe=RECIPE, rounds=result["rounds"], gflops=rate / 1e9, **size))
    header = ["", "s", "plain", "floor", "over floor", "step MiB", "plain", "signal, MiB a sample"]
    for name, first in (("vocabulary", "V"), ("answers", "supervised of {length}")):
        rows = []
        for row in result[name]:
            floor = row["operations"] / rate
            value = row["vocabulary"] if name == "vocabulary" else row["supervised"]
            cells = [f"{value:,}", *(f"{row['seconds'][side]:.2f}" for side in ("ours", "plain"))]
            cells += [f"{floor:.2f}", f"{row['seconds']['ours'] / floor:.1f}"]
            cells += [f"{row['peak_bytes'][side] / measuring.MIB:,.0f}" for side in ("ours", "plain")]
            rows.append([*cells, f"{row['signal_bytes_a_sample'] / measuring.MIB:.2f}"])
        parts.append(measuring.table([first.format(**size), *header[1:]], rows))
    parts.append("The teacher's one pass.")
    lines = [
        [f"{r['samples']}", f"{r['seconds']:.1f}", f"{r['operations'] / rate:.1f}", f"{r['bytes'] / measuring.MIB:,.1f}"]
        for r in result["samples"]
    ]
    parts.append(measuring.table(["samples", "s", "floor", "MiB on disk"], lines))
    parts.append(MANY.format(epochs=EPOCHS, samples=result["samples"][-1]["samples"]))
    lines = [
        [
            f"{r['students']}", f"{r['ours']:,.0f}", f"{r['plain']:,.0f}", f"{r['plain'] / r['ours']:.1f}",
            f"{r['floor']:,.0f}", f"{r['ours'] / r['floor']:.1f}", f"{r['bytes'] / measuring.MIB:,.1f}",
        ]
        for r in result["students"]
    ]  # fmt: skip
    head = ["students", "s", "plain", "times less", "floor", "over floor", "MiB on disk"]
    parts.append(measuring.table(head, lines))
    return "\n\n".join(parts) + "\n"


def _draw(result: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory over vocabulary, answer length and students."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rate, mib = result["operations_per_second"], 1 << 20
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for column, (name, key, label) in enumerate(
        (("vocabulary", "vocabulary", "vocabulary"), ("answers", "supervised", "supervised tokens a row"))
    ):
        rows = result[name]
        at = [row[key] for row in rows]
        for side in ("ours", "plain"):
            axes[0, column].plot(at, [row["seconds"][side] for row in rows], "o-", label=side)
            axes[1, column].plot(at, [row["peak_bytes"][side] / mib for row in rows], "o-", label=side)
        axes[0, column].plot(at, [row["operations"] / rate for row in rows], "k:", label="floor")
        axes[0, column].set(ylabel="seconds a step", ylim=(0, None))
        axes[1, column].set(xlabel=label, ylabel="MiB at once in a step", ylim=(0, None))
    rows = result["students"]
    for side, style in (("ours", "o-"), ("plain", "o-"), ("floor", "k:")):
        axes[0, 2].plot([row["students"] for row in rows], [row[side] for row in rows], style, label=side)
    ticks = [row["students"] for row in rows]
    axes[0, 2].set(xlabel="students", ylabel="seconds in all", ylim=(0, None), xticks=ticks)
    rows = result["samples"]
    axes[1, 2].plot([row["samples"] for row in rows], [row["bytes"] / mib for row in rows], "o-", label="signal")
    axes[1, 2].set(xlabel="samples", ylabel="MiB on disk", ylim=(0, None))
    for each in axes.flat:
        each.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    cli.main(app, COMMAND)
