"""Scenes: what is in a picture, before it is drawn. Plain Python and :mod:`random`, so that every machine agrees."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.base import unknown
from tasks.miniature import VERSION

KINDS = ("circle", "square", "triangle", "cross", "star", "ring")
KIND_WEIGHTS = (26, 22, 18, 14, 11, 9)  # unequal on purpose: POPE's "popular" negatives need popular objects
COMPANION = {"circle": "ring", "ring": "circle", "square": "cross", "cross": "square", "triangle": "star", "star": "triangle"}
ROUND = ("circle", "ring")
COLORS = ("red", "blue", "green", "yellow", "purple", "orange")
COLOR_WEIGHTS = (24, 20, 18, 15, 13, 10)
SIZES = ("small", "large")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
WORDS = (
    "stop", "go", "open", "exit", "sale", "cafe", "taxi", "bus", "milk", "tea", "bank", "park",
    "shop", "fire", "gas", "gym", "zoo", "hot", "cold", "fish", "ice", "toy", "pub", "spa",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

#: Share of all possible scenes, in percent, that each split draws from: a scene's own hash says which split may show it.
BUCKETS = {"pretrain": range(0, 60), "train": range(60, 80), "dev": range(80, 90), "test": range(90, 100)}


@dataclass(frozen=True)
class Thing:
    """One object: a kind in a colour and size, in a cell of the 3 x 3 grid (row 0 is the top, column 0 the left)."""

    kind: str
    color: str
    size: str
    row: int
    column: int

    @property
    def place(self) -> str:
        """The cell in words, such as ``top left``."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Scene:
    """One to three objects and, in some scenes, a written word or a two-digit number that fills the top or bottom row."""

    id: str
    things: tuple[Thing, ...]
    text: str | None
    text_row: int | None

    @property
    def signature(self) -> str:
        """The content without the id: two scenes with one signature show the same things."""
        things = sorted((t.row, t.column, t.kind, t.color, t.size) for t in self.things)
        return f"{things}|{self.text}|{self.text_row}"

    def only(self, test: Callable[[Thing], bool]) -> Thing | None:
        """Return the one thing that passes ``test``, or None when none or several do."""
        found = [t for t in self.things if test(t)]
        return found[0] if len(found) == 1 else None

    @property
    def kinds(self) -> set[str]:
        """The kinds present."""
        return {t.kind for t in self.things}

    @property
    def colors(self) -> set[str]:
        """The colours present."""
        return {t.color for t in self.things}


def bucket(scene: Scene) -> str:
    """Return the one split that may show this scene, from a hash of its content."""
    share = int.from_bytes(hashlib.sha256(scene.signature.encode()).digest()[:4], "big") % 100
    return next(name for name, shares in BUCKETS.items() if share in shares)


def _draw(rng: random.Random, name: str) -> Scene:
    text, text_row = None, None
    cells = [(row, column) for row in range(3) for column in range(3)]
    if rng.random() < 0.4:
        text = rng.choice(WORDS) if rng.random() < 0.6 else str(rng.randrange(10, 100))
        text_row = rng.choice((0, 2))
        cells = [cell for cell in cells if cell[0] != text_row]
    things: list[Thing] = []
    for row, column in rng.sample(cells, rng.choice((1, 2, 2, 3, 3))):
        kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
        if things and rng.random() < 0.35:
            kind = COMPANION[things[-1].kind]  # things that come together: POPE's "adversarial" negatives
        things.append(Thing(kind, rng.choices(COLORS, COLOR_WEIGHTS)[0], rng.choice(SIZES), row, column))
    return Scene(name, tuple(things), text, text_row)


def scenes(split: str) -> Iterator[Scene]:
    """Yield the scenes of a split, without end and without a repeat, the same ones on every machine.

    Raises:
        UserError: for a split that :data:`BUCKETS` does not know.
    """
    if split not in BUCKETS:
        raise unknown("miniature split", split, BUCKETS)
    rng = random.Random(f"miniature {VERSION} scenes {split}")
    seen: set[str] = set()
    while True:
        scene = _draw(rng, f"{split}-{len(seen):05d}")
        if bucket(scene) != split or scene.signature in seen:
            continue
        seen.add(scene.signature)
        yield scene
