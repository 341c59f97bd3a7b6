"""What the statistics cost: ``python benchmarks/report_statistics.py``, a minute or two, no network.

Scores of simulated students on six benchmarks of the official sizes (37,522 questions), 3 seeds each, through what a report
does: reading them, an interval for every student on every benchmark and their average, and the paired differences from the
fixed weighting and from plain training with Holm's correction. Growth with students and with questions. Each size runs in a
process of its own, whose peak memory (all of Python included) stands beside the seconds. Target at full size: 60 s, 4 GiB.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from harness import base, cli

COMMAND = "benchmarks/report_statistics.py"
#: benchmark -> (clusters, questions per cluster on average) of the official sets: GQA testdev, POPE, MME, MMBench dev,
#: ScienceQA test, TextVQA validation.
SIZES = {
    "gqa": (398, 12578 / 398),
    "pope": (500, 18.0),
    "mme": (1187, 2.0),
    "mmbench": (1164, 4329 / 1164),
    "scienceqa": (4241, 1.0),
    "textvqa": (3166, 5000 / 3166),
}
STUDENTS = ["ce", *(f"ce+{e}@{w}" for e in ("fkl", "rkl", "js", "tvd", "cosine_probs") for w in ("fixed", "task", "instance"))]
STUDENTS += ["fkl", "rkl", "js", "tvd"]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
console = Console()


def questions(benchmark: str, share: float, rng: np.random.Generator) -> pd.DataFrame:
    """Questions of a benchmark in clusters as its aggregation needs them; ``share`` of its clusters."""
    clusters, mean = SIZES[benchmark]
    clusters = max(14, round(share * clusters))
    fixed = benchmark in ("pope", "mme", "scienceqa")
    sizes = (
        np.full(clusters, round(mean))
        if fixed
        else 1 + rng.multinomial(round((mean - 1) * clusters), [1 / clusters] * clusters)
    )
    code = np.repeat(np.arange(clusters), sizes)
    inside = np.arange(len(code)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    groups = np.full(len(code), "all", dtype=object)
    if benchmark == "pope":
        groups = np.array(["random", "popular", "adversarial"], dtype=object)[inside // 6]
    if benchmark == "mme":
        groups = np.array([f"part{k:02d}" for k in range(14)], dtype=object)[code % 14]
    frame = pd.DataFrame({"cluster": [f"{benchmark}/image-{c:06d}" for c in code], "group": groups})
    return frame.assign(
        id=[f"{benchmark}/question-{k:07d}" for k in range(len(code))], gold=np.where(inside % 2 == 0, "yes", "no"),
        protocol=f"{benchmark}@miniature", protocol_version=1, unparseable=False, hard=rng.normal(0, 0.8, clusters)[code],
    )  # fmt: skip


def simulate(path: Path, students: int, seeds: int, share: float) -> int:
    """Write scores of ``students`` trained with ``seeds``; return the number of questions."""
    rng = np.random.default_rng(1)
    asked = pd.concat([questions(name, share, rng) for name in SIZES], ignore_index=True)
    parts = []
    for k, student in enumerate(STUDENTS[:students]):
        for seed in range(seeds):
            right = rng.normal(0.02 * k + 0.6, 1.0, len(asked)) > asked["hard"]
            said = np.where(right, asked["gold"], np.where(asked["gold"] == "yes", "no", "yes"))
            new = asked.drop(columns="hard").assign(student=student, kind="student", seed=seed, prediction=said)
            parts.append(new.assign(score=right.astype(np.float64)))
    pd.concat(parts, ignore_index=True).astype({"seed": "Int64"}).to_parquet(path)
    return len(asked)


def measure(path: Path, students: int, seeds: int, resamples: int) -> dict[str, Any]:
    """Do a report's statistics in this process; return seconds, processor seconds, peak memory and what was made."""
    from reports import frames, tables
    from reports.measures import Estimates

    started, processor = time.monotonic(), time.process_time()
    scores = frames.read_frame(path, frames.SCORES)
    protocols = tuple(tables_protocols())
    manifest = frames.Manifest.model_validate(
        {
            "preset": {"name": "benchmark", "title": "Benchmark", "description": "Simulated."},
            "students": STUDENTS[:students],
            "seeds": list(range(seeds)),
            "protocols": {p.name: {"version": p.version} for p in protocols},
        }
    )
    run = frames.Run(path.parent, manifest, "", protocols, scores, None)
    estimates = Estimates(run, resamples)
    made = 0
    for name in ("accuracy", "difference-fixed", "difference-ce"):
        table = tables.build(name, tables.layouts([name])[name], estimates)
        made += sum(cell is not None for row in table.rows for cell in row.cells)
    return {
        "seconds": time.monotonic() - started, "processor_seconds": time.process_time() - processor,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "cells": made, "rows": len(scores),
    }  # fmt: skip


def tables_protocols() -> list[Any]:
    """The installed protocols whose aggregations the official ones share, in the order of ``SIZES``."""
    from tasks import catalogue

    return [catalogue.protocol(f"{name}@miniature") for name in SIZES]


Students = Annotated[int, typer.Option("--students", min=3, max=len(STUDENTS), help="Students at full size.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each.")]
Resamples = Annotated[int, typer.Option("--resamples", min=100, help="Resamples of the clusters.")]
Share = Annotated[float, typer.Option("--share", min=0.01, max=1.0, help="Share of each benchmark's clusters at full size.")]
Out = Annotated[Path, typer.Option("--out", help="JSON file to write.")]
Growth = Annotated[bool, typer.Option(help="Measure smaller sizes first.")]
Child = Annotated[Path | None, typer.Option("--child", hidden=True)]


@app.command(help=__doc__)
def statistics(
    students: Students = 20,
    seeds: Seeds = 3,
    resamples: Resamples = 2000,
    share: Share = 1.0,
    out: Out = Path("runs/benchmarks/statistics.json"),
    growth: Growth = True,
    child: Child = None,
) -> None:
    """Measure and print."""
    if child is not None:
        typer.echo(json.dumps(measure(child, students, seeds, resamples)))
        return
    sizes = [(max(3, students // 4), share), (max(3, students // 2), share), (students, share / 4), (students, share / 2)]
    table = Table("students", "seeds", "questions", "rows", "cells", "seconds", "processor s", "peak GiB")
    records = []
    for count, part in [*(sizes if growth else ()), (students, share)]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scores.parquet"
            asked = simulate(path, count, seeds, part)
            call = [sys.executable, __file__, "--child", str(path), "--students", str(count), "--seeds", str(seeds)]
            done = subprocess.run([*call, "--resamples", str(resamples)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise base.UserError(f"{count} students, {asked} questions: {done.stderr.strip()[-500:]}")
        found = {"students": count, "seeds": seeds, "questions": asked, "resamples": resamples, **json.loads(done.stdout)}
        records.append(found)
        numbers = [f"{found[k]:.2f}" for k in ("seconds", "processor_seconds", "peak_gib")]
        table.add_row(str(count), str(seeds), f"{asked:,}", f"{found['rows']:,}", str(found["cells"]), *numbers)
    console.print(table)
    base.write_json(out, {"records": records})
    console.print(f"written: {out}")


if __name__ == "__main__":
    cli.main(app, COMMAND)
