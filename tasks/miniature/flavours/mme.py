"""MME flavour: two questions an image and category, one answered yes and one no; both right earns accuracy+."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tasks.miniature.scene import COLORS, COLUMNS, KINDS, NUMBERS, ROUND, ROWS, WORDS, Scene
from tasks.questions import Question

BENCHMARK = "mme"
COUNTS = {"dev": 280, "test": 700}

Pair = tuple[str, str]


def _existence(scene: Scene, rng: random.Random) -> Pair:
    absent = [kind for kind in KINDS if kind not in scene.kinds]
    return f"Is there a {rng.choice(scene.things).kind} in this image?", f"Is there a {rng.choice(absent)} in this image?"


def _color(scene: Scene, rng: random.Random) -> Pair:
    thing = rng.choice(scene.things)
    absent = [color for color in COLORS if color not in scene.colors]
    return f"Is there a {thing.color} object in this image?", f"Is there a {rng.choice(absent)} object in this image?"


def _count(scene: Scene, rng: random.Random) -> Pair:
    real = len(scene.things)
    other = rng.choice([number for number in (1, 2, 3) if number != real])
    asked = "Is the number of objects in this image"
    return f"{asked} {NUMBERS[real]}?", f"{asked} {NUMBERS[other]}?"


def _position(scene: Scene, rng: random.Random) -> Pair:
    taken = {(thing.row, thing.column) for thing in scene.things}
    row, column = rng.choice([(r, c) for r in range(3) for c in range(3) if (r, c) not in taken])
    empty = f"{ROWS[row]} {COLUMNS[column]}"
    return (
        f"Is there an object at the {rng.choice(scene.things).place} of this image?",
        f"Is there an object at the {empty} of this image?",
    )


def _ocr(scene: Scene, rng: random.Random) -> Pair | None:
    if scene.text is None or scene.text.isdigit():
        return None
    other = rng.choice([word for word in WORDS if word != scene.text])
    return f"Is the word {scene.text} written in this image?", f"Is the word {other} written in this image?"


def _calculation(scene: Scene, rng: random.Random) -> Pair | None:
    if scene.text is None or not scene.text.isdigit():
        return None
    value = int(scene.text)
    if value < 20 or value >= 90:
        return None  # no round number lies on both sides
    below = rng.choice([bound for bound in range(10, 100, 10) if bound < value])
    above = rng.choice([bound for bound in range(10, 100, 10) if bound > value])
    return f"Is the written number greater than {below}?", f"Is the written number greater than {above}?"


def _commonsense(scene: Scene, rng: random.Random) -> Pair | None:
    if scene.kinds <= set(ROUND):
        return "Can every object in this image roll?", "Is there an object with corners in this image?"
    if not scene.kinds & set(ROUND):
        return "Is there an object with corners in this image?", "Is there an object that can roll in this image?"
    return None


CATEGORIES: dict[str, Callable[[Scene, random.Random], Pair | None]] = {
    "existence": _existence,
    "count": _count,
    "position": _position,
    "color": _color,
    "OCR": _ocr,
    "numerical_calculation": _calculation,
    "commonsense_reasoning": _commonsense,
}


def _pair(scene: Scene, category: str, pair: Pair) -> list[Question]:
    picture = f"{category}/{scene.id}.png"
    made = []
    for text, answer in zip(pair, ("Yes", "No"), strict=True):
        doc = {
            "question_id": picture,
            "question": f"{text} Please answer yes or no.",
            "answer": answer,
            "category": category,
        }
        other = "no" if answer == "Yes" else "yes"
        made.append(Question(f"{picture}:{answer}", doc, scene.id, answer.lower(), picture, category, (other,)))
    return made


def evaluation(scenes: Iterator[Scene], count: int, rng: random.Random) -> Iterator[Question]:
    """The same number of pairs in every category; a scene that a category cannot use is left for none."""
    for number in range(count // 2):
        category = tuple(CATEGORIES)[number % len(CATEGORIES)]
        pair = None
        while pair is None:
            scene = next(scenes)
            pair = CATEGORIES[category](scene, rng)
        yield from _pair(scene, category, pair)


def training(scene: Scene, rng: random.Random) -> list[Question]:
    """One pair an image, in a category that the scene allows."""
    made = {name: make(scene, rng) for name, make in CATEGORIES.items()}
    allowed = {name: pair for name, pair in made.items() if pair is not None}
    rare = [name for name in ("OCR", "numerical_calculation", "commonsense_reasoning") if name in allowed]
    category = rng.choice(rare) if rare and rng.random() < 0.5 else rng.choice(tuple(allowed))
    return _pair(scene, category, allowed[category])
