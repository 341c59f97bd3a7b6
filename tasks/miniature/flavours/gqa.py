"""GQA flavour: open, compositional questions about one scene; one word answers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks.miniature.attributes import POOLS, attribute
from tasks.miniature.scene import Scene
from tasks.questions import Question

BENCHMARK = "gqa"
COUNTS = {"dev": 300, "test": 600}
WEIGHTS = {"kind": 30, "color": 25, "place": 15, "relation": 20, "count": 10}


def _question(scene: Scene, number: int, rng: random.Random) -> Question:
    made = attribute(scene, rng, WEIGHTS)
    name = f"{scene.id}-{number}"
    doc = {
        "id": name,
        "imageId": scene.id,
        "question": made.question,
        "answer": made.answer,
        "fullAnswer": f"The answer is {made.answer}.",
        "isBalanced": True,
        "types": {"structural": made.structure, "semantic": made.pool},
    }
    wrong = tuple(value for value in POOLS[made.pool] if value != made.answer)
    return Question(name, doc, scene.id, made.answer, scene.id, made.structure, wrong)


def evaluation(scenes: Iterator[Scene], count: int, rng: random.Random) -> Iterator[Question]:
    """Two questions an image."""
    for number in range(count):
        if number % 2 == 0:
            scene = next(scenes)
        yield _question(scene, number % 2, rng)


def training(scene: Scene, rng: random.Random) -> list[Question]:
    """Two questions an image."""
    return [_question(scene, number, rng) for number in range(2)]
