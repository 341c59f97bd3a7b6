"""Resume points: everything a training needs to go on as if it had never stopped, in one file that is whole or not there."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.base import UserError, atomic_path, digest, remove
from students.cost import max_of
from students.sharding import whole_tree

if TYPE_CHECKING:
    from students.cost import Cost
    from students.training import Training

#: Raise when a point written before could not be gone on from.
VERSION = 1
FOLDER = "resume"
#: What a training writes; an attempt that starts from nothing clears what an earlier one left.
WRITES = (
    "student", "adapter", "dynamics.jsonl", "betas.parquet", "snapshots.npz", "cost.json", "training.json", "failure",
    "weighting.safetensors", "weighting.json", "energies.safetensors",
)  # fmt: skip


def points(out: Path) -> list[Path]:
    """Return the resume points below ``out``, the newest last."""
    return sorted((out / FOLDER).glob("step-*.pt"))


def key(training: Training) -> str:
    """SHA-256 (hex) of what a training must share with a resume point to go on from it."""
    weights = [[name, list(p.shape)] for name, p in training.adapter.trainable()]
    return digest(
        {
            "recipe": training.recipe.name,
            "options": training.options.model_dump(mode="json", exclude={"save_every"}),
            "variant": training.variant.model_dump(mode="json"),
            "seed": training.seed,
            "data": training.feed.digest(),
            "learned": weights,
            "frozen": training.learning.before,
        }
    )


def save(training: Training, step: int, cost: Cost) -> None:
    """Write the point after ``step``, whose records must be flushed, and then drop older ones."""
    optimiser, ranks, parallel = training.weighting_optimiser, training.ranks, training.parallel
    own: dict[str, Any] = {
        "random": _random(),
        "passes": 0 if training.voice is None else training.voice.passes,
        "peak": cost.peak(),
    }
    found = ranks.gather(own)
    state = {
        "version": VERSION,
        "key": training.key,
        "step": step,
        "student": whole_tree(training.learning.state()),
        "optimiser": whole_tree(training.optimiser.state()),
        "losses": training.losses.state_dict(),
        "logs": parallel.total(training.losses.logs),
        "weighting": training.weighting.state_dict(),
        "weighting_optimiser": None if optimiser is None else optimiser.state_dict(),
        "counts": dict(training.counts),
        "replaced": training.replaced,
        "passes": sum(each["passes"] for each in found),
        "seconds": cost.seconds(),
        "peak": max_of([each["peak"] for each in found]),
        "random": own["random"],
    }
    with ranks.together():
        if ranks.first:
            others = {"others": [each["random"] for each in found[1:]]} if ranks.world > 1 else {}
            _write(training.out, step, {**state, "recorder": training.recorder.state(), **others})


def _write(out: Path, step: int, state: dict[str, Any]) -> None:
    path = out / FOLDER / f"step-{step:09d}.pt"
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
    for old in points(out):
        if old != path:
            remove(old)


def start(training: Training, cost: Cost) -> int:
    """Go on from the newest resume point, or clear what an earlier attempt left; return the steps that are done.

    Raises:
        UserError: for a point that is damaged, or that another training wrote.
    """
    ranks = training.ranks
    if ranks.world > 1 and len(set(ranks.gather(training.key))) > 1:
        raise UserError(
            "the processes of this run were given different recipes, options, data or models; start all with the same"
        )
    with ranks.together():
        newest = _newest(training) if ranks.first else None
    newest = ranks.tell(newest)
    if newest is None:
        return 0
    with ranks.together():
        state = _read(newest)
        _same(training, newest, state)
    _restore(training, state)
    if ranks.first:
        cost.resume(state["seconds"], state["peak"])
    known = [state["random"], *state.get("others", ())]
    if ranks.rank < len(known):
        _set_random(known[ranks.rank])
    else:  # fewer processes wrote the point: only dropout draws from this
        torch.manual_seed(seed_of(training.seed, ranks.rank, state["step"]))
    return int(state["step"])


def _newest(training: Training) -> Path | None:
    """Return the newest resume point; without one, clear what an earlier attempt left."""
    for half in (training.out / FOLDER).glob(".*.tmp"):
        remove(half)
    found = points(training.out)
    if found:
        return found[-1]
    for name in WRITES:
        remove(training.out / name)
    training.recorder.begin()
    return None


def _same(training: Training, path: Path, state: dict[str, Any]) -> None:
    """Refuse a point that this training cannot go on from."""
    if state.get("version") != VERSION or state.get("key") != training.key:
        raise UserError(
            f"{path} was written by another training (recipe, options, seed, data or base differ); remove"
            f" {training.out / FOLDER} to start from nothing"
        )


def _restore(training: Training, state: dict[str, Any]) -> None:
    """Put everything back; what was counted over all ranks belongs to the first."""
    training.learning.restore(state["student"])
    training.optimiser.restore(state["optimiser"])
    training.losses.load_state_dict(state["losses"])
    first = training.ranks.first
    logs = {k: v.to(training.accelerator.device) for k, v in state["logs"].items()}
    training.losses.logs = logs if first else {k: torch.zeros_like(v) for k, v in logs.items()}
    training.weighting.load_state_dict(state["weighting"])
    if training.weighting_optimiser is not None:
        training.weighting_optimiser.load_state_dict(state["weighting_optimiser"])
    if first:
        training.recorder.restore(state["recorder"])
        training.counts, training.replaced = Counter(state["counts"]), tuple(state["replaced"])
    if training.voice is not None:
        training.voice.passes = state["passes"] if first else 0


def seed_of(seed: int, rank: int, step: int = 0) -> int:
    """Return the seed of another rank than the first, whose dropout draws for other rows."""
    return int(digest([seed, rank, step])[:8], 16)


def clear(out: Path) -> None:
    """Remove all points: the training is complete."""
    remove(out / FOLDER)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); remove {path.parent} to start this training from nothing") from error
    return state


def _random() -> dict[str, Any]:
    name, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - what libraries may draw from
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(place), int(has_gauss), float(gauss)),
    }


def _set_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    name, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, gauss))  # noqa: NPY002
