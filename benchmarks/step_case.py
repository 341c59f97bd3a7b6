"""Random models with a vocabulary of any size, and what they train on, for one step of this harness and a plain one."""

from __future__ import annotations

import itertools
import random
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from students import distil, models
from students.data import pack
from students.data.samples import Sample, TrainingSet
from students.models.llava import LlavaAdapter
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.shape import LlavaShape
from students.teacher_signal.keys import signal_key
from students.teacher_signal.packed import cache
from students.teacher_signal.reading import TeacherSignal
from students.tokens import SPECIAL, build_tokenizer
from students.training import Training
from students.vision.pictures import pixel_table

#: Tokens of a tokenizer beside its words: the special ones, digits and continuations of digits.
OTHERS = len(SPECIAL) + 20
#: Tokens of a row beside the prompt's words: its beginning and the mark before the answer.
FRAME = 2


@dataclass(frozen=True)
class Size:
    """Rows of ``length`` tokens, one sample each, of which ``supervised`` are answer; models of fixed depth and width.

    The teacher's blocks have 4.7 times the student's parameters, as 7B and MobileLLaMA's 1.4B do.

    Attributes:
        vocabulary: V.
        rows, length, supervised: of a step's batch, in tokens; the last includes the end token.
        student, teacher: hidden, intermediate, layers, heads.
        tower: hidden, layers, heads, image and patch of the vision tower, in pixels; the same for both models.
    """

    vocabulary: int
    rows: int = 2
    length: int = 256
    supervised: int = 13
    student: tuple[int, int, int, int] = (384, 1024, 6, 6)
    teacher: tuple[int, int, int, int] = (768, 2048, 7, 12)
    tower: tuple[int, int, int, int, int] = (192, 4, 4, 64, 16)

    @property
    def image_tokens(self) -> int:
        """n_v."""
        return (self.tower[3] // self.tower[4]) ** 2

    @property
    def words(self) -> int:
        """Words of a prompt."""
        return self.length - FRAME - self.image_tokens - (self.supervised - 1)


#: The same code on a laptop in seconds.
TINY = Size(60, 2, 32, 4, (16, 32, 1, 2), (32, 64, 1, 2), (16, 1, 2, 8, 4))


@dataclass(frozen=True)
class Case:
    """What both sides train on: checkpoints, samples, and batches of one row per sample (numbers of samples).

    ``signal_seconds`` (processor) and ``signal_bytes`` (disk) are what the teacher's one pass over the samples took.
    """

    size: Size
    base: Path
    teacher: Path
    inputs: distil.Inputs
    options: DistilOptions
    batches: list[list[list[int]]]
    signal_seconds: float
    signal_bytes: int

    def batch(self, members: list[list[int]]) -> pack.Batch:
        """One step's rows as tensors, for the plain side; its data costs no time in a step either."""
        adapter = models.load(self.base)
        return pack.collate(self.inputs.encoded, members, pixel_table(adapter, self.inputs.data))


def words(count: int) -> list[str]:
    """Return ``count`` different words of four small letters."""
    return ["".join(letters) for letters in itertools.islice(itertools.product(string.ascii_lowercase, repeat=4), count)]


def checkpoints(size: Size, folder: Path) -> tuple[Path, Path]:
    """Write random student and teacher with one tokenizer of exactly V tokens; return their folders."""
    tokenizer = build_tokenizer([" ".join(words(size.vocabulary - OTHERS))])
    if len(tokenizer) != size.vocabulary:
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} tokens, not {size.vocabulary}")
    made = []
    for seed, (name, shape) in enumerate((("base", size.student), ("teacher", size.teacher))):
        hidden, intermediate, layers, heads = shape
        width, depth, looks, image, patch = size.tower
        whole = LlavaShape(
            hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, vision_hidden=width, vision_layers=depth,
            vision_heads=looks, image=image, patch=patch,
        )  # fmt: skip
        LlavaAdapter.build(whole, tokenizer, seed).save(folder / name)
        made.append(folder / name)
    return made[0], made[1]


def samples(size: Size, count: int) -> TrainingSet:
    """Return ``count`` questions of random words with an image and an answer each."""
    draw, known = random.Random(0), words(size.vocabulary - OTHERS)
    side = size.tower[3]
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    rows = []
    for k in range(count):
        prompt, answer = (" ".join(draw.choices(known, k=n)) for n in (size.words, size.supervised - 1))
        rows.append(Sample(f"q{k}", "random", f"{k:016x}", prompt, answer, answer, noisy=False, blind=False))
    return TrainingSet(tuple(rows), {f"{k:016x}": image for k, image in enumerate(pixels)})


@contextmanager
def prepared(size: Size, steps: int) -> Iterator[Case]:
    """Write the models, and let the teacher look at the samples of ``steps`` batches once, as a run does for all students."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        base, teacher = checkpoints(size, folder)
        found = samples(size, steps * size.rows)
        encoded = pack.encode(found.samples, models.load(base).processor)
        started = time.process_time()
        cache(teacher, found, folder / "signal", lambda *_: None, rows=size.rows, turns=1)
        seconds = time.process_time() - started
        size_on_disk = sum(path.stat().st_size for path in (folder / "signal").rglob("*") if path.is_file())
        said = TeacherSignal.load(folder / "signal", signal_key(teacher, found))
        batches = [[[step * size.rows + row] for row in range(size.rows)] for step in range(steps)]
        # far more steps than are taken, so that the rate stays what it is and no histogram of a last step is in the times
        options = DistilOptions(
            steps=10**6, rows=size.rows, turns=1, lr=1e-4, optimiser="adamw", warmup=0, clip=1.0, betas_every=10**6
        )
        given = distil.Inputs(base, found, encoded, said, teacher)
        yield Case(size, base, teacher, given, options, batches, seconds, size_on_disk)


class Ours:
    """A student of this harness, stepped from outside."""

    def __init__(self, case: Case, recipe: str, out: Path) -> None:
        self.training = Training(parse(recipe), case.options, case.inputs, 0, out, "cpu", Variant())
        self.training.recorder.begin()
        self.taken = 1  # the first step's logits become a histogram, which is no part of a step's cost

    def step(self, members: list[list[int]]) -> None:
        """Take one optimiser step."""
        self.taken += 1
        self.training.step(self.taken, members)

    def losses(self) -> dict[str, float]:
        """Return the step's mean losses {channel: value}, read outside the time."""
        (step,) = self.training.recorder.pending
        found = dict(zip(self.training.recorder.channels, step.losses.mean(1).tolist(), strict=True))
        self.training.recorder.flush()
        return found

    def standing_bytes(self) -> int:
        """Bytes of the student's weights and of its optimiser's state."""
        own = [*self.training.adapter.model.parameters(), *self.training.adapter.model.buffers()]
        state = [v for part in self.training.optimiser.parts for s in part.state.values() for v in s.values()]
        return sum(t.numel() * t.element_size() for t in [*own, *state])
