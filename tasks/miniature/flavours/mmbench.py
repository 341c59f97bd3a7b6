"""MMBench flavour: four options; in evaluation each question comes in all four circular rotations and counts once."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks.miniature.attributes import POOLS, attribute
from tasks.miniature.scene import Scene
from tasks.questions import Question

BENCHMARK = "mmbench"
COUNTS = {"dev": 300, "test": 800}
LETTERS = "ABCD"
WEIGHTS = {"kind": 35, "color": 30, "place": 20, "relation": 15}
_ABILITY = {"query": "attribute_recognition", "place": "object_localization", "relation": "spatial_relationship"}
_GROUP_STEP = 1_000_000  # lmms-eval finds the rotations of one question by index % 1e6


def _base(scene: Scene, rng: random.Random) -> tuple[str, str, list[str], str]:
    while True:
        made = attribute(scene, rng, WEIGHTS)
        if len(POOLS[made.pool]) >= len(LETTERS):
            break
    options = [made.answer, *rng.sample([value for value in POOLS[made.pool] if value != made.answer], 3)]
    rng.shuffle(options)
    return made.question, made.answer, options, _ABILITY[made.structure]


def _row(scene: Scene, group: int, turn: int, base: tuple[str, str, list[str], str]) -> Question:
    text, right, options, ability = base
    turned = options[turn:] + options[:turn]
    answer = LETTERS[turned.index(right)]
    index = group + turn * _GROUP_STEP
    doc = {
        "index": index,
        "question": text,
        "hint": None,
        "answer": answer,
        **dict(zip(LETTERS, turned, strict=True)),
        "category": ability,
        "source": "miniature",
        "L2-category": "finegrained_perception (instance-level)",
        "comment": None,
        "split": scene.id.split("-")[0],
    }
    wrong = tuple(letter for letter in LETTERS if letter != answer)
    return Question(str(index), doc, scene.id, answer, str(group), ability, wrong)


def evaluation(scenes: Iterator[Scene], count: int, rng: random.Random) -> Iterator[Question]:
    """All four rotations of ``count / 4`` questions, one an image."""
    for group in range(count // len(LETTERS)):
        scene = next(scenes)
        base = _base(scene, rng)
        for turn in range(len(LETTERS)):
            yield _row(scene, group, turn, base)


def training(scene: Scene, rng: random.Random) -> list[Question]:
    """One question an image, its options in the order they were shuffled into."""
    return [_row(scene, int(scene.id.split("-")[1]), 0, _base(scene, rng))]
