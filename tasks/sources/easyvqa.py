"""easy-VQA (Victor Zhou, PyPI ``easy-vqa==1.0``, MIT): 5,000 images of one coloured shape, 48,248 questions.

Its questions are mapped onto GQA's columns, so that lmms-eval's GQA task prompts and scores them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from harness.base import UserError, digest, unknown
from tasks.questions import Pixels, Question, QuestionSet, image_key

VERSION = "1.0"
DEV_IMAGES = 400
SPLITS = ("train", "dev", "test")
KINDS = {
    "yes/no": ("yes", "no"),
    "shape": ("circle", "rectangle", "triangle"),
    "color": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
}


def _package() -> ModuleType:
    try:
        package = importlib.import_module("easy_vqa")
        found = importlib.metadata.version("easy-vqa")
    except (ModuleNotFoundError, importlib.metadata.PackageNotFoundError) as error:
        raise UserError(
            'the easy-VQA data are not installed. Run: pip install "easy-vqa==1.0" (or pip install -e .[easyvqa])'
        ) from error
    if found != VERSION:
        raise UserError(f'easy-vqa {found} is installed, expected {VERSION}. Run: pip install "easy-vqa=={VERSION}"')
    return package


def _kind(answer: str) -> str:
    for kind, answers in KINDS.items():
        if answer in answers:
            return kind
    raise UserError(
        f"easy-VQA: unknown answer {answer!r}; known: {', '.join(a for answers in KINDS.values() for a in answers)}"
    )


def _pixels(path: str) -> Pixels:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


@functools.lru_cache(maxsize=3)
def load(benchmark: str, split: str, *, images: int | None = None) -> QuestionSet:
    """Return easy-VQA's questions; cluster = image, group = kind of answer (yes/no, shape, color).

    Args:
        benchmark: ``easyvqa``.
        split: ``test`` is the published one; ``dev`` holds the last 400 images of the published ``train``.
        images: keep the questions about the first so many images of the split.

    Raises:
        UserError: for another benchmark or split, or when the package is missing or of another version.
    """
    if benchmark != "easyvqa":
        raise unknown("easy-VQA benchmark", benchmark, ["easyvqa"])
    if split not in SPLITS:
        raise unknown("easy-VQA split", split, SPLITS)
    if images is not None and images < 1:
        raise UserError(f"images is {images}; allowed: 1 or more")
    published = "test" if split == "test" else "train"
    package = _package()
    read: Callable[[], Any] = getattr(package, f"get_{published}_questions")
    paths: dict[int, str] = getattr(package, f"get_{published}_image_paths")()
    numbers = sorted(paths)
    if published == "train":
        numbers = numbers[-DEV_IMAGES:] if split == "dev" else numbers[:-DEV_IMAGES]
    numbers = numbers[:images]
    pixels = {number: _pixels(paths[number]) for number in numbers}
    keys = {number: image_key(value) for number, value in pixels.items()}
    questions = []
    for row, (text, answer, number) in enumerate(zip(*read(), strict=True)):
        if number not in keys:
            continue
        kind = _kind(answer)
        name, picture = f"{published}-{row:05d}", f"{published}-{number}"
        doc = {
            "id": name,
            "imageId": picture,
            "question": re.sub(r"\s+", " ", text).strip(),
            "answer": answer,
            "fullAnswer": answer,
            "isBalanced": False,
            "types": {"semantic": kind},
        }
        others = tuple(a for a in KINDS[kind] if a != answer)
        questions.append(Question(name, doc, keys[number], answer, picture, kind, others))
    content = [[q.id, dict(q.doc), q.image, q.answer, q.cluster, q.group, list(q.wrong)] for q in questions]
    return QuestionSet(tuple(questions), {keys[n]: v for n, v in pixels.items()}, digest(content))
