"""Put scenes, flavours and pictures together into question sets."""

from __future__ import annotations

import functools
import importlib
import itertools
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from harness.base import UserError, digest, unknown
from tasks.miniature import VERSION
from tasks.miniature.render import render
from tasks.miniature.scene import BUCKETS, Scene, scenes
from tasks.questions import Pixels, Question, QuestionSet, image_key

TRAINING = ("pretrain", "train")


@functools.cache
def flavours() -> dict[str, ModuleType]:
    """Return the flavours by benchmark name: every file in ``flavours/``."""
    names = sorted(p.stem for p in (Path(__file__).parent / "flavours").glob("[!_]*.py"))
    modules = [importlib.import_module(f"tasks.miniature.flavours.{name}") for name in names]
    return {module.BENCHMARK: module for module in modules}


def flavour(benchmark: str) -> ModuleType:
    """Return one flavour's module; an unknown name is a :class:`UserError`."""
    if benchmark not in flavours():
        raise unknown("miniature benchmark", benchmark, flavours())
    return flavours()[benchmark]


@functools.lru_cache(maxsize=4096)  # six flavours ask about the same scenes
def picture(scene: Scene) -> tuple[str, Pixels]:
    """Return a scene's picture, uint8 [60, 60, 3], after its key; shared by all who ask, so not to be written to."""
    pixels = render(scene)
    return image_key(pixels), pixels


def _pictures(questions: Iterable[Question], shown: dict[str, Scene]) -> QuestionSet:
    """Draw every scene that is asked about, and name pictures by their pixels."""
    keys: dict[str, str] = {}
    images: dict[str, Pixels] = {}
    done: list[Question] = []
    for question in questions:
        if question.image is None:
            done.append(question)
            continue
        if question.image not in keys:
            keys[question.image], pixels = picture(shown[question.image])
            images[keys[question.image]] = pixels
        done.append(replace(question, image=keys[question.image]))
    content = [[q.id, dict(q.doc), q.image, q.answer, q.cluster, q.group, list(q.wrong)] for q in done]
    return QuestionSet(tuple(done), images, digest(content))


def evaluation_set(benchmark: str, split: str) -> QuestionSet:
    """Return the ``dev`` or ``test`` questions of one flavour.

    Raises:
        UserError: for an unknown benchmark or a split without evaluation questions.
    """
    module = flavour(benchmark)
    if split not in module.COUNTS:
        raise unknown(f"evaluation split of {benchmark}", split, module.COUNTS)
    shown: dict[str, Scene] = {}

    def stream() -> Iterable[Scene]:
        for scene in scenes(split):
            shown[scene.id] = scene
            yield scene

    rng = random.Random(f"miniature {VERSION} {benchmark} {split}")
    questions = tuple(module.evaluation(iter(stream()), module.COUNTS[split], rng))
    return _pictures(questions, shown)


def training_set(benchmark: str, split: str, images: int) -> QuestionSet:
    """Return the questions of one flavour about the first ``images`` scenes of a training split.

    Raises:
        UserError: for an unknown benchmark, an unknown training split or ``images`` below one.
    """
    if split not in TRAINING:
        raise unknown("miniature training split", split, TRAINING)
    if images < 1:
        raise UserError(f"images is {images}; allowed: 1 or more")
    module = flavour(benchmark)
    shown = {scene.id: scene for scene in itertools.islice(scenes(split), images)}
    rng = random.Random(f"miniature {VERSION} {benchmark} {split}")
    questions = [question for scene in shown.values() for question in module.training(scene, rng)]
    return _pictures(questions, shown)


SPLITS = tuple(BUCKETS)
