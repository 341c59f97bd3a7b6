"""Models that a run makes itself: tower, teacher and base, trained here or put together from published parts."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from harness.stages import data
from harness.stages.student import use_torch

if TYPE_CHECKING:
    from harness.workers import Context

#: Raise when the same configuration would give other weights.
STAGE_VERSION = 1
ASSEMBLE_VERSION = 1


def target(role: str) -> str:
    """Return where the run keeps a model that it made, relative to the run folder."""
    return "teacher/checkpoint" if role == "teacher" else f"models/{role}"


def record(role: str) -> str:
    """Return where the run keeps how a model was made and how long it took, beside the checkpoint."""
    return f"models/{role}.json"


def train(context: Context) -> None:
    """Make one model from the corpus that its options name."""
    from harness import pretraining

    use_torch(context)
    role = context.config["role"]
    making = pretraining.Making.model_validate(context.config["train"])
    if making.corpus == "data":
        corpus = pretraining.data_corpus(data.load_training(context.root))
    else:
        from harness import miniature

        corpus = miniature.corpus(making.images, making.seed)
    tower = context.place("tower") if "tower" in context.stage.places else None
    out = context.out(target(role))
    pretraining.make(role, making, corpus, tower, out, context.progress)
    (out / "made.json").replace(context.out(record(role)))  # it holds seconds, and the checkpoint's digest must not


def assemble(context: Context) -> None:
    """Put one model together from its parts, with the function of its family, in ``students/models/_FAMILY_assemble.py``."""
    use_torch(context)
    config = context.config
    family = importlib.import_module(f"students.models._{config['family']}_assemble")
    parts = {part: context.place(part) for part in config["parts"]}
    family.assemble(**parts, out=context.out(target(config["role"])), seed=config["seed"])
