"""Training rows: the prompts of the evaluation, the replies to learn, and planted faults whose victims are recorded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UserError
from tasks.catalogue import Protocol, load
from tasks.faults import Faults
from tasks.prompting import prompts
from tasks.questions import Pixels, Question, QuestionSet

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "benchmark", "image", "prompt", "answer", "clean_answer", "noisy", "blind")


@dataclass(frozen=True)
class TrainingRows:
    """What students are trained on.

    Attributes:
        rows: one per question: id (``benchmark/question id``), benchmark, image (key or None), prompt (no chat template),
            answer (to be learned), clean_answer (the right one), noisy (the two differ), blind (the teacher is not
            shown this image).
        images: the images of the rows, uint8 [H, W, 3] by key.
    """

    rows: pd.DataFrame
    images: dict[str, Pixels]


def training_rows(
    protocols: Sequence[Protocol],
    split: str = "train",
    label_noise: float = 0.0,
    blindness: float = 0.0,
    seed: int = 0,
    data_root: str | Path | None = None,
    complementary: bool = False,
    blind_benchmarks: Sequence[str] = (),
    **options: Any,
) -> TrainingRows:
    """Return the training questions of every protocol's source, prompted as in its evaluation, with planted faults.

    Args:
        protocols: one per benchmark.
        split: of each protocol's source.
        label_noise, blindness, complementary, blind_benchmarks, seed: see :class:`tasks.faults.Faults`.
        data_root: see :func:`tasks.load`.
        options: added to every source's options (``images``: how many).

    Raises:
        UserError: for faults that make no sense, two protocols of one benchmark, no protocols, or label noise over questions
            that carry no wrong replies.
    """
    import pandas as pd

    faults = Faults(label_noise, blindness, complementary, tuple(blind_benchmarks), seed)
    benchmarks = [protocol.benchmark for protocol in protocols]
    if not benchmarks or len(set(benchmarks)) != len(benchmarks):
        raise UserError(f"training needs one protocol per benchmark, got {', '.join(p.name for p in protocols) or 'none'}")
    faults.check(benchmarks)
    rows = []
    images: dict[str, Pixels] = {}
    for protocol in protocols:
        questions = load(protocol, data_root, split=split, options=options)
        for question, prompt in zip(questions.questions, prompts(protocol, questions, scored=False), strict=True):
            name = f"{protocol.benchmark}/{question.id}"
            where = protocol.benchmark, question.image
            answer = _answer(question, name, faults.noise_rate(*where), seed)
            noisy, blind = answer != question.answer, faults.blind(*where)
            rows.append((name, *where, prompt, answer, question.answer, noisy, blind))
        images.update(questions.images)
    return TrainingRows(pd.DataFrame(rows, columns=list(COLUMNS)), images)


@dataclass(frozen=True)
class Taught:
    """A question to learn from.

    Attributes:
        id: unique within its benchmark and split.
        benchmark: it belongs to.
        prompt: as in the evaluation, without chat template and image.
        answer: the reply to learn.
        image: encoded bytes of a file, or None.
    """

    id: str
    benchmark: str
    prompt: str
    answer: str
    image: bytes | None


#: Questions that are prompted together: lmms-eval's prompts build a task each time.
_TOGETHER = 256


def stream(protocol: Protocol, split: str = "train", data_root: str | Path | None = None) -> Iterator[Taught]:
    """Yield a published benchmark's training questions, prompted by the protocol's own rule; memory does not grow with them.

    All rows are yielded, with and without image, also under a protocol that only asks those with one.

    Args:
        protocol: of ScienceQA; the other five publish no training split of their own.
        split: of the data set.
        data_root: see :func:`tasks.sources._train.rows`; null = the hub.

    Raises:
        UserError: for another benchmark, or data that cannot be read.
    """
    from tasks.answers import shapes
    from tasks.sources import _train

    if protocol.benchmark != "scienceqa" or protocol.dataset is None:
        raise UserError(f"{protocol.name}: only scienceqa's published training split is read; use a protocol of it")
    shape = shapes.shape(protocol.benchmark)
    held: list[tuple[Question, bytes | None]] = []
    root = None if data_root is None else Path(data_root)
    for number, found in enumerate(_train.rows(split, root)):
        held.append((shape(found.row, number).question, found.image))
        if len(held) == _TOGETHER:
            yield from _prompted(protocol, held)
            held = []
    if held:
        yield from _prompted(protocol, held)


def _prompted(protocol: Protocol, held: Sequence[tuple[Question, bytes | None]]) -> Iterator[Taught]:
    questions = QuestionSet(tuple(question for question, _ in held), {}, "training")
    for (question, image), prompt in zip(held, prompts(protocol, questions, scored=False), strict=True):
        yield Taught(question.id, protocol.benchmark, prompt, question.answer, image)


def _answer(question: Question, name: str, rate: float, seed: int) -> str:
    """Return the answer to learn: with probability ``rate`` a wrong one."""
    if rate == 0.0:
        return question.answer
    if not question.wrong:
        raise UserError(f"label_noise is {rate}, but question {name!r} carries no wrong replies to draw from")
    rng = random.Random(f"noise {seed} {name}")
    return rng.choice(question.wrong) if rng.random() < rate else question.answer
