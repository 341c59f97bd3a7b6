"""Open questions about one scene with exactly one right answer; the raw material of several flavours."""

from __future__ import annotations

import random
from typing import NamedTuple

from tasks.miniature.scene import COLORS, KINDS, NUMBERS, SIZES, Scene, Thing

RELATIONS = {
    "left of": lambda a, b: a.column < b.column,
    "right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}
POOLS = {"color": COLORS, "shape": KINDS, "size": SIZES, "count": NUMBERS[1:4]}


class Attribute(NamedTuple):
    """A question, its answer, the answer's pool (a key of :data:`POOLS`) and the question's structure."""

    question: str
    answer: str
    pool: str
    structure: str


def _value(thing: Thing, pool: str) -> str:
    return {"color": thing.color, "shape": thing.kind, "size": thing.size}[pool]


def _by_kind(scene: Scene, thing: Thing, rng: random.Random) -> Attribute | None:
    if scene.only(lambda t: t.kind == thing.kind) is None:
        return None
    pool = "color" if rng.random() < 0.75 else "size"
    return Attribute(f"What {pool} is the {thing.kind}?", _value(thing, pool), pool, "query")


def _by_color(scene: Scene, thing: Thing, rng: random.Random) -> Attribute | None:
    if scene.only(lambda t: t.color == thing.color) is None:
        return None
    pool = "shape" if rng.random() < 0.75 else "size"
    return Attribute(f"What {pool} is the {thing.color} object?", _value(thing, pool), pool, "query")


def _by_place(scene: Scene, thing: Thing, rng: random.Random) -> Attribute | None:
    pool = rng.choice(("color", "shape"))
    return Attribute(f"What {pool} is the object at the {thing.place}?", _value(thing, pool), pool, "place")


def _by_relation(scene: Scene, thing: Thing, rng: random.Random) -> Attribute | None:
    if len(scene.things) < 2 or scene.only(lambda t: t.kind == thing.kind) is None:
        return None
    name = rng.choice(tuple(RELATIONS))
    target = scene.only(lambda t: t is not thing and RELATIONS[name](t, thing))
    if target is None:
        return None
    pool = rng.choice(("color", "shape"))
    return Attribute(f"What {pool} is the object {name} the {thing.kind}?", _value(target, pool), pool, "relation")


def _count(scene: Scene, thing: Thing, rng: random.Random) -> Attribute | None:
    return Attribute("How many objects are there?", NUMBERS[len(scene.things)], "count", "count")


STRUCTURES = {"kind": _by_kind, "color": _by_color, "place": _by_place, "relation": _by_relation, "count": _count}


def attribute(scene: Scene, rng: random.Random, weights: dict[str, int]) -> Attribute:
    """Draw a question whose referent is unique in ``scene``; ``weights`` maps structures to how often they are tried.

    Questions by place and about the count always apply, so at least one of them must have a weight.
    """
    while True:
        name = rng.choices(tuple(weights), tuple(weights.values()))[0]
        found = STRUCTURES[name](scene, rng.choice(scene.things), rng)
        if found is not None:
            return found
