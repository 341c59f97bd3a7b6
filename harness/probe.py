"""A few steps of the real training code on made-up rows, timed: the only honest source of hours."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, digest, read_json, read_jsonl
from harness.estimates import TOKENS_PER_WORD
from students.data.conversations import IMAGE, Conversation, Turn
from students.options import DistilOptions
from students.recipe import Recipe, Variant

#: Steps that are taken, and how many of the first are not counted: they warm caches and choose kernels.
STEPS, COLD = 4, 2
#: Forward passes in a step, so that the optimiser's share is not taken for a pass's.
PASSES = 2
_SIDE = 336
_COMMON = (
    "the",
    "picture",
    "shows",
    "a",
    "small",
    "house",
    "near",
    "the",
    "river",
    "with",
    "two",
    "people",
    "on",
    "an",
    "old",
    "road",
)


class MadeUp:
    """Rows of one length that show one noise image each; implements :class:`students.data.conversations.Corpus`.

    Args:
        rows: how many.
        words: of a row's text, most of them in the reply.
    """

    def __init__(self, rows: int, words: int) -> None:
        self.name = "made-up rows"
        self.digest = digest([rows, words])
        self.lengths: NDArray[np.int32] = np.full(rows, words, np.int32)
        self.shows: NDArray[np.int16] = np.ones(rows, np.int16)
        self._picture = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        asked = min(10, max(1, words // 4))
        self._turn = Turn(f"{IMAGE}\n{_words(asked)}", _words(max(1, words - asked)))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Conversation:
        return Conversation(f"row {index}", self.name, ("noise",), (self._turn,))

    def picture(self, key: str) -> NDArray[np.uint8]:  # noqa: ARG002 - there is one
        """Return the one image."""
        return self._picture


def _words(count: int) -> str:
    return " ".join(_COMMON[k % len(_COMMON)] for k in range(count))


@dataclass(frozen=True)
class Timing:
    """What a forward and backward pass of ``rows`` rows took.

    Attributes:
        seconds: of a pass, its share of the optimiser's step included, which makes it a little too long.
        peak: bytes of memory at most, or None where the system does not tell.
    """

    seconds: float
    peak: int | None


def signal(options: DistilOptions, teacher: Path, words: float, device: Literal["cpu", "cuda"], out: Path) -> float:
    """Ask the teacher about the made-up rows, as is done once for all students; return the seconds a row.

    Args:
        options: of the stage that is timed.
        teacher: checkpoint folder.
        words: mean words of a row.
        device: where.
        out: new folder for what the teacher says, which :func:`probe` takes as ``said``.
    """
    from students.teacher_signal import streams

    short, corpus = _shortened(options, words)
    seen: list[tuple[int, float]] = []
    streams.cache(
        teacher, corpus, out, lambda done, _: seen.append((done, time.perf_counter())), rows=short.micro_rows or short.rows,
        device=device, dtype=options.teacher_dtype, template=options.template, limit=options.teacher_limit,
    )  # fmt: skip
    (rows, started), (last, ended) = seen[COLD - 1], seen[-1]
    return (ended - started) / (last - rows)


def probe(
    recipe: Recipe,
    variant: Variant | None,
    options: DistilOptions,
    base: Path,
    teacher: Path | None,
    words: float,
    device: Literal["cpu", "cuda"],
    scratch: Path,
    said: Path | None = None,
) -> Timing:
    """Train on made-up rows for a few steps.

    Args:
        recipe, variant: what on.
        options: of the stage that is timed.
        base, teacher: checkpoint folders.
        words: mean words of a row.
        device: where.
        scratch: a folder with room for one checkpoint, which is removed afterwards.
        said: what :func:`signal` wrote, for a student that hears it; None where the teacher runs beside the student.

    Raises:
        UserError: when the models do not fit together, or not on the device.
    """
    from students import distil as distiller
    from students.inputs import StreamInputs

    short, corpus = _shortened(options, words)
    heard = None
    if said is not None and teacher is not None:
        from students.teacher_signal.keys import stream_key
        from students.teacher_signal.stream_reading import StreamSignal

        key = stream_key(teacher, corpus, options.template, options.teacher_limit, options.teacher_dtype)
        heard = StreamSignal.load(said, key)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".probe-") as name:
        out = Path(name) / "student"
        inputs = StreamInputs(base, corpus, teacher, signal=heard)
        distiller.distil(recipe, short, inputs, 0, out, lambda *_: None, device=device, variant=variant)
        counted = [float(row["seconds"]) for row in read_jsonl(out / "dynamics.jsonl")][COLD:]
        if not counted:
            raise UserError("the probe took no step that counts")
        peak = read_json(out / "cost.json")["peak_memory_bytes"]
    return Timing(sum(counted) / len(counted) / PASSES, peak)


def _shortened(options: DistilOptions, words: float) -> tuple[DistilOptions, MadeUp]:
    """Return a stage's options for a few steps, and rows for them."""
    rows = (options.micro_rows or options.rows) * PASSES
    short = options.model_copy(
        update={
            "steps": STEPS, "epochs": None, "rows": rows, "micro_rows": rows // PASSES, "save_every": None, "flush_every": 1,
            "warmup": 1, "warmup_ratio": None, "betas_every": STEPS,
        }
    )  # fmt: skip
    fitting = int(words) if options.max_length is None else min(int(words), int(options.max_length / TOKENS_PER_WORD))
    return short, MadeUp(rows * STEPS, max(2, fitting))


def hours(timing: Timing, options: DistilOptions, steps: int) -> float:
    """Return the hours of a training of ``steps`` steps."""
    passes = -(-options.rows // (options.micro_rows or options.rows))
    return steps * passes * timing.seconds / 3600
