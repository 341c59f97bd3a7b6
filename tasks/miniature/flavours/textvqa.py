"""TextVQA flavour: read the word or number in the picture; ten answers and OCR tokens, as ten annotators would give them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks.miniature.render import SIDE
from tasks.miniature.scene import WORDS, Scene
from tasks.questions import Question

BENCHMARK = "textvqa"
COUNTS = {"dev": 200, "test": 400}


def _question(scene: Scene, text: str, number: int, rng: random.Random) -> Question:
    kind = "number" if text.isdigit() else "word"
    careless = rng.choice((0, 0, 0, 1, 2, 3))
    doc = {
        "image_id": scene.id,
        "question_id": number,
        "question": f"What {kind} is written?",
        "image_width": SIDE,
        "image_height": SIDE,
        "answers": [text] * (10 - careless) + ["unanswerable"] * careless,
        "ocr_tokens": [text.upper()],
        "set_name": scene.id.split("-")[0],
    }
    if kind == "word":
        wrong = tuple(word for word in WORDS if word != text)
    else:
        wrong = tuple(str(value) for value in range(10, 100) if str(value) != text)
    return Question(f"{scene.id}-text", doc, scene.id, text, scene.id, kind, wrong)


def evaluation(scenes: Iterator[Scene], count: int, rng: random.Random) -> Iterator[Question]:
    """One question an image, from the scenes that carry text."""
    with_text = (scene for scene in scenes if scene.text is not None)
    for number in range(count):
        scene = next(with_text)
        assert scene.text is not None
        yield _question(scene, scene.text, number, rng)


def training(scene: Scene, rng: random.Random) -> list[Question]:
    """One question where the scene carries text."""
    return [] if scene.text is None else [_question(scene, scene.text, int(scene.id.split("-")[1]), rng)]
