"""One optimiser step at real size: a 7 B teacher and a 1.7 B student of MobileVLM V2's published shapes, with random weights.

    python benchmarks/gpu_step.py --out step.json            on a GPU (needs about 70 GB of its memory)
    python benchmarks/gpu_step.py --tiny --device cpu --out tiny.json

The steps are those of the package (students/training.py), on made-up rows of 2,048 tokens with one image of 144 tokens each.
Per recipe and kind of teacher: median seconds of a step, tokens a second, peak memory, and the share of the measured
matrix-product rate that the step's floating-point operations make (MFU). Recomputed activations count for nothing in it.

``live``: the teacher runs beside the student. ``cached``: its signal of the same rows, made before the first step and kept
exactly (students/teacher_signal), lies in memory-mapped files, from which each step copies its own to the device.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from harness.base import write_json, write_text
from harness.config import load_preset
from harness.probe import MadeUp
from real_size import ANSWERS, STUDENT, TEACHER, TINY_STUDENT, TINY_TEACHER, Random, Size, flops, mean_answer
from students import learning, models
from students.inputs import StreamInputs
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.teacher_signal import keys, streams
from students.teacher_signal.stream_reading import StreamSignal
from students.training import Device, Training

RECIPES = ("ce", "ce+fkl@fixed", "ce+fkl@task", "ce+fkl@instance")
#: Sides of the square matrices whose product is timed.
MATRIX = {"cuda": 8192, "cpu": 512}


@dataclass(frozen=True)
class Workload:
    """Everything that the measured students share.

    Attributes:
        student, teacher: sizes.
        length: tokens of a row.
        options: of the training.
        steps: measured ones, after ``cold`` that are not.
    """

    student: Size
    teacher: Size
    length: int
    options: DistilOptions
    steps: int
    cold: int
    device: Device

    @property
    def rows(self) -> int:
        """Rows of the corpus: enough for every step, none twice."""
        return self.options.rows * (self.steps + self.cold + 2)


def workload(tiny: bool, device: Device, steps: int, rows: int, micro_rows: int) -> Workload:
    """Return the options of the paper's second stage (presets/_paper-stages.yaml) on steps of ``rows`` rows."""
    options = load_preset("paper-table4").stages[-1].training
    changed: dict[str, Any] = {
        "epochs": None, "steps": 10**6, "rows": rows, "micro_rows": micro_rows, "save_every": None, "template": None,
        "max_length": None, "warmup_ratio": None, "warmup": 0, "grouping": "none", "megabatch": None,
        "flush_every": 10**6, "betas_every": 10**6, "overlong": "stop",
    }  # fmt: skip
    length = 2048
    if tiny:
        length = 256
        changed |= {"precision": "no", "frozen_dtype": "float32", "teacher_dtype": "float32"}
    made = DistilOptions.model_validate(options.model_dump() | changed)
    sizes = (TINY_STUDENT, TINY_TEACHER) if tiny else (STUDENT, TEACHER)
    return Workload(*sizes, length, made, steps, 2, device)


def matrix_rate(device: str, dtype: torch.dtype, repeats: int = 20) -> float:
    """Return the measured rate of square matrix products, in floating-point operations a second (median)."""
    side = MATRIX[device]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for number in range(repeats + 3):
        synchronise(device)
        started = time.perf_counter()
        left @ right
        synchronise(device)
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds)


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def teacher_of(work: Workload) -> Random:
    """Return a teacher of random weights, frozen."""
    teacher = Random(work.teacher, work.length, work.device, getattr(torch, work.options.teacher_dtype))
    teacher.model.requires_grad_(False)
    return teacher


@contextlib.contextmanager
def made_here(adapters: Mapping[str, Random]) -> Iterator[None]:
    """Let the package find random models where it would load checkpoints.

    Digests of weights, which are no part of a step, are not taken.
    """

    def load(folder: Path, *_: object) -> Random:
        return adapters[folder.name]

    with (
        mock.patch.object(models, "load", load),
        mock.patch.object(keys, "teacher_key", lambda _: {"teacher": "random weights"}),
        mock.patch.object(learning.Learning, "_digests", lambda _: {}),
        mock.patch.object(learning.Learning, "_digests_of_teacher", lambda _: {}),
    ):
        yield


def keep(work: Workload, teacher: Random, corpus: MadeUp, folder: Path) -> StreamSignal:
    """Ask the teacher about every row once, and open what it said, kept exactly."""
    place, options = Path("teacher"), work.options
    with made_here({place.name: teacher}):
        streams.cache(
            place, corpus, folder, lambda *_: None,
            rows=options.micro_rows or options.rows, device=work.device, dtype=options.teacher_dtype,
        )  # fmt: skip
        return StreamSignal.load(folder, keys.stream_key(place, corpus, dtype=options.teacher_dtype))


@dataclass(frozen=True)
class Measured:
    """One recipe beside one kind of teacher.

    Attributes:
        recipe, teacher: which; ``teacher`` is live, cached or none.
        seconds: median of a step; low, high: quartiles.
        tokens_per_second: of all rows' tokens.
        peak_bytes: most that torch held on the device at once, all models included; None on a CPU.
        flops: that a step asks for.
        mfu: their share of the measured matrix-product rate.
        supervised: mean supervised tokens of a row.
    """

    recipe: str
    teacher: str
    seconds: float
    low: float
    high: float
    tokens_per_second: float
    peak_bytes: int | None
    flops: float
    mfu: float
    supervised: float


def measure(work: Workload, recipe: str, kind: str, corpus: MadeUp, signal: StreamSignal | None, rate: float) -> Measured:
    """Train for some steps and time them; the models are made anew, so that every recipe starts from the same weights."""
    parsed = parse(recipe)
    torch.manual_seed(0)
    adapters = {"base": Random(work.student, work.length, work.device, torch.float32)}
    if kind == "live":
        adapters["teacher"] = teacher_of(work)
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    options = work.options.model_copy(update={"live_teacher": kind == "live"})
    given = StreamInputs(Path("base"), corpus, Path("teacher") if kind == "live" else None, signal=signal)
    with tempfile.TemporaryDirectory() as name, made_here(adapters):
        training = Training(parsed, options, given, 0, Path(name), work.device, Variant())
        with contextlib.closing(training):
            training.recorder.begin()
            training.join()
            seconds = [_step(training, number, work.device) for number in range(2, 2 + work.cold + work.steps)][work.cold :]
    peak = int(torch.cuda.max_memory_allocated()) if work.device == "cuda" else None
    supervised = mean_answer(work.length)
    median = statistics.median(seconds)
    beside = work.teacher if kind == "live" else None
    asked = flops(work.student, beside, work.options.rows, work.length, supervised)
    low, high = np.quantile(seconds, (0.25, 0.75)).tolist()
    tokens = work.options.rows * work.length / median
    return Measured(recipe, kind, median, low, high, tokens, peak, asked, asked / median / rate, supervised)


def _step(training: Training, number: int, device: str) -> float:
    """Take step ``number`` with its rows prepared, as they are while the step before runs; return its seconds."""
    members = training.feed.members(number)
    training.feed.ahead(training.micro(members))
    for ready in training.feed._ready.values():  # type: ignore[attr-defined]
        ready.result()
    synchronise(device)
    started = time.perf_counter()
    training.step(number, members)
    synchronise(device)
    taken = time.perf_counter() - started
    training.flush()
    return taken


def run(work: Workload, recipes: Sequence[str], kinds: Collection[str]) -> dict[str, Any]:
    """Measure every recipe with every kind of teacher; ``ce`` has none."""
    corpus = MadeUp(work.rows, 100)
    dtype = torch.bfloat16 if work.options.precision == "bf16" else torch.float32
    rate = matrix_rate(work.device, dtype)
    made: list[Measured] = []
    with tempfile.TemporaryDirectory() as name:
        signal: StreamSignal | None = None
        if "cached" in kinds:
            torch.manual_seed(0)
            signal = keep(work, teacher_of(work), corpus, Path(name))
        for recipe in recipes:
            taught = [kind for kind in ("live", "cached") if kind in kinds] if parse(recipe).energies else ["none"]
            for kind in taught:
                made.append(measure(work, recipe, kind, corpus, signal if kind == "cached" else None, rate))
                if work.device == "cuda":
                    torch.cuda.empty_cache()
    name = torch.cuda.get_device_name() if work.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    return {
        "device": name, "torch": torch.__version__, "matrix_product_flops_per_second": rate, "dtype": str(dtype),
        "workload": {
            **{key: value for key, value in asdict(work).items() if key != "options"},
            "options": work.options.model_dump(mode="json"), "answer_tokens": ANSWERS,
        },
        "steps": [asdict(each) for each in made],
        "beta_over_fixed": _beta(made),
    }  # fmt: skip


def _beta(made: Sequence[Measured]) -> dict[str, float]:
    """Return the median step of each Beta weighting over that of fixed weights, by kind of teacher."""
    found = {(each.recipe, each.teacher): each.seconds for each in made}
    return {
        f"{recipe}, {kind}": seconds / found["ce+fkl@fixed", kind]
        for (recipe, kind), seconds in found.items()
        if recipe.endswith(("@task", "@instance")) and ("ce+fkl@fixed", kind) in found
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    rate = result["matrix_product_flops_per_second"]
    lines = [
        f"Device: {result['device']}, torch {result['torch']}; matrix products in {result['dtype']}:"
        f" {rate / 1e12:.3g} TFLOP/s measured.",
        "",
        "| recipe | teacher | step (s) | quartiles | tokens/s | peak memory (GB) | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in result["steps"]:
        peak = "-" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e9:.1f}"
        lines.append(
            f"| `{each['recipe']}` | {each['teacher']} | {each['seconds']:.4g} | {each['low']:.4g} to {each['high']:.4g}"
            f" | {each['tokens_per_second']:,.0f} | {peak} | {100 * each['mfu']:.1f} % |"
        )
    for what, ratio in result["beta_over_fixed"].items():
        lines += [
            "",
            f"A step with `{what.partition(',')[0]}` ({what.partition(', ')[2]}) takes {ratio:.4f} of one with fixed weights.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the same code on models of a few thousand weights")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=12, help="measured steps a recipe")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--micro-rows", type=int, default=4, help="rows of a pass")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--teachers", nargs="+", default=["live", "cached"], choices=("live", "cached"))
    parser.add_argument("--out", type=Path, required=True, help="a .json; the table goes beside it as .md")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; allowed: --device cpu, with --tiny")
    work = workload(given.tiny, given.device, given.steps, given.rows, given.micro_rows)
    result = run(work, given.recipes, given.teachers)
    write_json(given.out, result)
    write_text(given.out.with_suffix(".md"), table(result))
    print(table(result))  # noqa: T201 - a script


if __name__ == "__main__":
    main()
