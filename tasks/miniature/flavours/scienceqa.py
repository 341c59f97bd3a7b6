"""ScienceQA flavour: three choices; a share without an image (facts), a share with a hint, the rest about the picture."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks.miniature.attributes import POOLS, attribute
from tasks.miniature.scene import KINDS, Scene
from tasks.questions import Question

BENCHMARK = "scienceqa"
COUNTS = {"dev": 300, "test": 600}
FACTS = {
    "animal": ("wolf", "horse", "eagle", "shark", "frog", "sheep", "tiger", "whale"),
    "plant": ("rose", "oak", "fern", "moss", "cactus", "tulip", "pine", "grass"),
    "metal": ("copper", "zinc", "silver", "lead", "nickel", "tin", "steel", "mercury"),
    "planet": ("mars", "venus", "saturn", "jupiter", "neptune", "uranus", "earth", "pluto"),
}
MATERIALS = ("wood", "iron", "glass", "stone", "paper", "wax")
WEIGHTS = {"kind": 40, "color": 30, "place": 15, "count": 15}


def _fact(rng: random.Random) -> tuple[str, str, str, list[str]]:
    subject = rng.choice(tuple(FACTS))
    others = rng.sample([name for name in FACTS if name != subject], 2)
    right = rng.choice(FACTS[subject])
    return "", f"Which of these is a {subject}?", right, [right, *(rng.choice(FACTS[name]) for name in others)]


def _hint(scene: Scene, rng: random.Random) -> tuple[str, str, str, list[str]] | None:
    thing = rng.choice(scene.things)
    if scene.only(lambda t: t.color == thing.color) is None:
        return None
    kinds = [thing.kind, rng.choice([kind for kind in KINDS if kind != thing.kind])]
    materials = rng.sample(MATERIALS, 3)
    made_of = dict(zip(kinds, materials, strict=False))
    rng.shuffle(kinds)
    hint = " ".join(f"Each {kind} is made of {made_of[kind]}." for kind in kinds)
    asked = thing.kind if rng.random() < 0.5 else f"{thing.color} object"  # the second needs the picture too
    return hint, f"What is the {asked} made of?", made_of[thing.kind], materials


def _picture(scene: Scene, rng: random.Random) -> tuple[str, str, str, list[str]]:
    while True:
        made = attribute(scene, rng, WEIGHTS)
        if len(POOLS[made.pool]) >= 3:
            break
    others = rng.sample([value for value in POOLS[made.pool] if value != made.answer], 2)
    return "", made.question, made.answer, [made.answer, *others]


def _question(name: str, scene: Scene | None, rng: random.Random) -> Question:
    made = None
    if scene is not None:
        made = (_hint(scene, rng) if rng.random() < 0.35 else None) or _picture(scene, rng)
    hint, text, right, choices = made or _fact(rng)
    rng.shuffle(choices)
    answer = "ABC"[choices.index(right)]
    topic = "facts" if scene is None else "hint" if hint else "picture"
    doc = {
        "question": text,
        "choices": choices,
        "answer": choices.index(right),
        "hint": hint,
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": topic,
        "category": topic,
        "skill": f"Answer from {topic}",
        "lecture": "",
        "solution": "",
    }
    image = None if scene is None else scene.id
    return Question(name, doc, image, answer, image or name, topic, tuple(letter for letter in "ABC" if letter != answer))


def evaluation(scenes: Iterator[Scene], count: int, rng: random.Random) -> Iterator[Question]:
    """One question an image; every third has no image."""
    for number in range(count):
        scene = None if number % 3 == 2 else next(scenes)
        yield _question(f"q{number:05d}", scene, rng)


def training(scene: Scene, rng: random.Random) -> list[Question]:
    """One question about the image and, for every second image, one without."""
    made = [_question(f"{scene.id}-science", scene, rng)]
    if rng.random() < 0.5:
        made.append(_question(f"{scene.id}-fact", None, rng))
    return made
