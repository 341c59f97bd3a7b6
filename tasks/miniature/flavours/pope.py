"""POPE flavour: is a thing there? Half yes; negatives random, popular (frequent kinds) or adversarial (companions)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks.miniature.scene import COMPANION, KIND_WEIGHTS, KINDS, Scene
from tasks.questions import Question

BENCHMARK = "pope"
COUNTS = {"dev": 300, "test": 600}
SPLITS = ("random", "popular", "adversarial")
_BY_FREQUENCY = [kind for _, kind in sorted(zip(KIND_WEIGHTS, KINDS, strict=True), reverse=True)]


def _absent(scene: Scene, split: str, rng: random.Random) -> str:
    absent = [kind for kind in KINDS if kind not in scene.kinds]
    if split == "popular":
        return rng.choice([kind for kind in _BY_FREQUENCY if kind in absent][:2])
    if split == "adversarial":
        companions = sorted({COMPANION[kind] for kind in scene.kinds} - scene.kinds)
        return rng.choice(companions or absent)
    return rng.choice(absent)


def _question(scene: Scene, split: str, present: bool, rng: random.Random) -> Question:
    kind = rng.choice(scene.things).kind if present else _absent(scene, split, rng)
    answer = "yes" if present else "no"
    name = f"{scene.id}-{split}-{answer}"
    doc = {
        "id": name,
        "question_id": name,
        "question": f"Is there a {kind} in the image?",
        "answer": answer,
        "image_source": scene.id,
        "category": split,
    }
    return Question(name, doc, scene.id, answer, scene.id, split, ("no" if present else "yes",))


def evaluation(scenes: Iterator[Scene], count: int, rng: random.Random) -> Iterator[Question]:
    """Six questions an image, yes and no in each of the three splits, as POPE asks six."""
    for number in range(count):
        if number % 6 == 0:
            scene = next(scenes)
        yield _question(scene, SPLITS[number % 3], number % 2 == 0, rng)


def training(scene: Scene, rng: random.Random) -> list[Question]:
    """One yes and one no an image."""
    return [_question(scene, rng.choice(SPLITS), present, rng) for present in (True, False)]
