"""Time of a student's optimiser step with each energy and weighting, relative to one that only reads the teacher's signal."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import tasks
from harness.config import Preset, load_preset, model_path
from loss_level import OPTIONS, Shape
from students import distil, models
from students.data import pack, samples
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.teacher_signal.keys import signal_key
from students.teacher_signal.packed import cache
from students.teacher_signal.reading import TeacherSignal
from students.training import Training
from students.vision.pictures import pixel_table
from tasks.training import training_rows

BASELINE = "ce"
#: Students between two steps of the baseline.
CHUNK = 6
#: What the issue allows an energy or weighting that needs no extra pass.
TARGET = 1.10


class Student(Training):
    """A student that reads the teacher's cached logits at every step, whether its losses use them or not."""

    def asks(self, number: int) -> bool:  # noqa: ARG002 - the base class's signature
        """Always."""
        return True


class Unread(Training):
    """The plain `ce` student, which does not."""


@dataclass(frozen=True)
class Workload:
    """What all students share: inputs, settings, batches of packed rows (sample numbers), processor seconds of the signal."""

    preset: Preset
    inputs: distil.Inputs
    options: DistilOptions
    batches: list[list[list[int]]]
    signal_seconds: float

    def shape(self) -> Shape:
        """Return the first batch's sizes: rows, longest row, supervised tokens a row (rounded), V, width, n_v."""
        adapter = models.load(self.inputs.base)
        batch = pack.collate(self.inputs.encoded, self.batches[0], pixel_table(adapter, self.inputs.data))
        rows, length = batch.input_ids.shape
        sizes = {"vocabulary": adapter.vocabulary_size, "width": adapter.hidden_size, "vision": adapter.vision_tokens or 0}
        return Shape("miniature", rows, length, round(len(batch.labels) / rows), **sizes)


@contextmanager
def workload(images: int, steps: int) -> Iterator[Workload]:
    """Prepare the miniature preset's models and training rows of ``images`` images per benchmark, and cache the signal once.

    A quarter of the images is hidden from the teacher, so that the weighting `oracle` has its planted truth.
    """
    preset = load_preset("miniature")
    teacher, base = (model_path(str(getattr(preset.models, role))) for role in ("teacher", "base"))
    data, training = preset.data, preset.training
    if training is None:
        raise ValueError("the miniature preset has no training")
    made = training_rows(
        [tasks.protocol(name) for name in preset.protocols],
        split=data.split, label_noise=data.label_noise, blindness=0.25, seed=data.seed, images=images,
    )  # fmt: skip
    found = samples.from_frame(made.rows, made.images)
    with TemporaryDirectory() as folder:
        signal = Path(folder) / "signal"
        started = time.process_time()
        cache(teacher, found, signal, lambda *_: None, rows=training.rows, turns=training.turns)
        seconds = time.process_time() - started
        said = TeacherSignal.load(signal, signal_key(teacher, found))
        encoded = pack.encode(found.samples, models.load(base).processor)
        batches = list(pack.schedule(pack.groups(encoded, training.turns, 0), steps + 1, training.rows, 0))
        # far more steps than are taken, so that nothing of the last step (histograms) is in the times
        options = training.model_copy(update={"steps": 1000 * (steps + 1)})
        yield Workload(preset, distil.Inputs(base, found, encoded, said, teacher), options, batches, seconds)


class Clocked:
    """One student, its own step numbers, and the seconds of each of its steps by processor and by clock."""

    def __init__(self, recipe: str, work: Workload, out: Path, kind: type[Training] = Student) -> None:
        parsed = parse(recipe)
        variant = Variant(energies={c: OPTIONS[c] for c in parsed.energies if c in OPTIONS})
        self.training = kind(parsed, work.options, work.inputs, 0, out, "cpu", variant)
        self.training.recorder.begin()
        self.taken = 0

    def step(self, members: list[list[int]]) -> tuple[float, float]:
        """Take one step; the records are read back outside the time, once per step."""
        self.taken += 1
        clock, processor = time.perf_counter(), time.process_time()
        self.training.step(self.taken, members)
        seconds = time.process_time() - processor, time.perf_counter() - clock
        self.training.recorder.flush()
        return seconds

    def extra(self) -> list[str]:
        """Name the passes that it needs beside the student's own, from what energy and weighting declare."""
        passes = {"second_forward": "a second forward pass", "gradient_norms": "a backward pass per channel"}
        taps = [f"live teacher ({', '.join(sorted(self.training.wanted))})"] if self.training.wanted else []
        return taps + [text for name, text in passes.items() if name in self.training.weighting.needs]


def students(energies: Sequence[str], weightings: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the recipe of every row: {(kind, name): recipe}."""
    rows = {("baseline", "ce without the signal"): BASELINE}
    rows |= {("energy", name): f"ce+{name}@fixed" for name in energies}
    return rows | {("weighting", name): f"ce+fkl@{name}" for name in weightings}


def measure(
    work: Workload, energies: Sequence[str], weightings: Sequence[str], tick: Callable[[], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Step all students in rounds, on the same batch each round, in a new order each time.

    A step of the baseline comes before and after every few students; a student's ratio in a round is its step's time over
    the mean of these two. The first round warms up and is not counted: it also holds the one pass before the first step
    that weightings which read losses ask for.

    Args:
        work: from :func:`workload`.
        energies: measured as ce+X@fixed.
        weightings: measured as ce+fkl@X.
        tick: called after each round.

    Returns:
        Facts of the baseline's step, and one row per student: median and quartiles of its ratio.
    """
    rows = students(energies, weightings)
    ratios: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in rows}
    own: list[tuple[float, float]] = []
    shuffler = random.Random(0)
    with TemporaryDirectory() as folder, distil._deterministic():
        baseline = Clocked(BASELINE, work, Path(folder) / "baseline")
        clocked = {
            key: Clocked(recipe, work, Path(folder) / str(number), Unread if key[0] == "baseline" else Student)
            for number, (key, recipe) in enumerate(rows.items())
        }
        for number, members in enumerate(work.batches):
            order = list(rows)
            shuffler.shuffle(order)
            before = baseline.step(members)
            for start in range(0, len(order), CHUNK):
                times = {key: clocked[key].step(members) for key in order[start : start + CHUNK]}
                after = baseline.step(members)
                if number:
                    own.append(after)
                    for key, seconds in times.items():
                        ratios[key].append(_over(seconds, before, after))
                before = after
            tick()
        extra = {key: one.extra() for key, one in clocked.items()}
    processor, clock = zip(*own, strict=True)
    counted = work.batches[1:]
    facts = {
        "recipe": BASELINE,
        "processor_ms": statistics.median(processor) * 1e3,
        "wall_ms": statistics.median(clock) * 1e3,
        "rounds": len(counted),
        "rows": work.options.rows,
        "samples": statistics.mean(sum(map(len, m)) for m in counted),
        "tokens": statistics.mean(sum(len(work.inputs.encoded.answers[k]) for r in m for k in r) for m in counted),
    }
    return facts, [_row(key, recipe, extra[key], np.array(ratios[key])) for key, recipe in rows.items()]


def _over(seconds: tuple[float, float], before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    """Ratios by processor and by clock."""
    processor, clock = (2 * s / (a + b) for s, a, b in zip(seconds, before, after, strict=True))
    return processor, clock


def _row(key: tuple[str, str], recipe: str, extra: list[str], ratios: np.ndarray) -> dict[str, Any]:
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0).tolist()
    return {
        "kind": key[0], "name": key[1], "recipe": recipe, "extra_pass": extra,
        "ratio": median[0], "low": low[0], "high": high[0],
        "wall_ratio": median[1], "wall_low": low[1], "wall_high": high[1],
        "above_target": not extra and median[0] > TARGET,
    }  # fmt: skip


def one_thread() -> None:
    """Keep torch on one thread, as the presets do."""
    torch.set_num_threads(1)
