"""What the frozen tower sees in every image of a run: caches that trainings, the teacher and evaluations share.

A stage's ``config``: ``precision`` and ``frozen_dtype`` of the trainings (or ``dtype`` of the evaluation), which shape the
arithmetic. Places: ``base``, whose tower it is, and where the images are. Nothing that uses one depends on whether it is there:
see harness/vision_plan.py.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UserError, read_json
from harness.caching import Planned
from harness.stages import corpus as corpora
from harness.stages import data, encode
from harness.stages.student import use_torch

if TYPE_CHECKING:
    from harness.plan import Stage
    from harness.workers import Context
    from students.models._base import Adapter

#: Raise when the same configuration would give other features.
STAGE_VERSION = 1

KIND = "vision"
PLANS = "harness.stages.vision:planned"
DATA, QUESTIONS = "vision/data", "vision/questions"
#: Features an image where the model's configuration does not say how many.
_MOST = 4096
#: Bytes of headers, and per image of its name and of the digest of its pixels.
_HEADERS, _PER_IMAGE = 4096, 160


def target(corpus: str) -> str:
    """Return where features of a corpus's images lie, relative to the run folder."""
    return f"vision/corpora/{corpus}"


def packed(context: Context) -> None:
    """Write ``vision/data``: features of the training data's images, and of their mean where a teacher is blind to some."""
    import torch

    from students.vision import pictures, store

    samples, _ = encode.load(context.root)
    adapter, half = _as_trained(context)
    names = pictures.wanted(samples)

    def pixels(keys: Sequence[str]) -> torch.Tensor:
        here = [key for key in keys if key != pictures.MEAN_IMAGE]
        made = [adapter.pixels([samples.images[key] for key in here])] if here else []
        if len(here) < len(keys):  # it is the last
            made.append(pictures.mean_image(pictures.pixel_table(adapter, samples))[None])
        return torch.cat(made)

    store.write(adapter, names, pixels, context.out(DATA), context.progress, half=half)


def streamed(context: Context) -> None:
    """Write ``vision/corpora/NAME``: features of the images that a corpus's rows show, each decoded once."""
    import torch

    from students.data.corpus import IndexedCorpus
    from students.vision import store

    places = context.stage.places
    rows = IndexedCorpus(context.place("corpus"), context.place("images") if "images" in places else None)
    adapter, half = _as_trained(context)
    names = list(dict.fromkeys(key for row in rows for key in row.images))

    def pixels(keys: Sequence[str]) -> torch.Tensor:
        return torch.cat([adapter.pixels([rows.picture(key)]) for key in keys])

    store.write(adapter, names, pixels, context.out(context.stage.targets[0]), context.progress, half=half)


def questions(context: Context) -> None:
    """Write ``vision/questions``: features of the images that the protocols' questions show, found by content."""
    import torch

    import tasks
    from harness.stages import evaluate
    from students import models
    from students.vision import store
    from tasks.lmms import CheckpointModel

    use_torch(context)
    models.register()
    loaded = CheckpointModel(context.place("base"), device=context.settings.device, dtype=context.config["dtype"])
    evaluate.squeeze(loaded)
    adapter = models.wrap(loaded.model, loaded.processor)
    if adapter is None:
        raise UserError(f"{context.place('base')} is of a family whose tower is not run apart")
    shown: dict[str, Any] = {}
    for name in context.config["protocols"]:
        found = data.load_questions(context, tasks.protocol(name), context.config["limit"])
        shown |= {q.image: found.images for q in found.questions if q.image is not None}

    def pixels(keys: Sequence[str]) -> torch.Tensor:
        return torch.cat([adapter.pixels([shown[key][key]]) for key in keys])

    store.write(adapter, list(shown), pixels, context.out(QUESTIONS), context.progress, content=True)


def _as_trained(context: Context) -> tuple[Adapter, bool]:
    """Load the base as students train it: rounded where they round it; and say whether under autocast to bfloat16."""
    from students import models
    from students.learning import Learning
    from students.options import DistilOptions

    use_torch(context)
    base, arithmetic = context.place("base"), dict(context.config["arithmetic"])
    adapter = models.load(base, context.settings.device)
    options = DistilOptions.model_validate({"steps": 1, **arithmetic})
    Learning(adapter, base, options, 0)
    return adapter, options.precision == "bf16"


# ---- before anything is written --------------------------------------------------------------------------------------------


def planned(root: Path, stage: Stage) -> Planned:
    """Return what a stage of this kind writes at most."""
    half = stage.config.get("dtype") == "bfloat16"
    form = f"features in {'bfloat16' if half else 'at most float32'}"
    count, shape = images(root, stage), features(root, stage)
    if count is None or shape is None:
        return Planned(form, None)
    return Planned(form, size(stage, count, shape), f"{count:,} images of {shape[0]} x {shape[1]}")


def size(stage: Stage, count: int, shape: tuple[int, int]) -> int:
    """Return the bytes of ``count`` images' features of ``shape`` (n, C), at most, with their names and digests."""
    each = shape[0] * shape[1] * (2 if stage.config.get("dtype") == "bfloat16" else 4)
    means = 1 if stage.targets == (DATA,) else 0  # the mean image, which a blind teacher is shown
    return _HEADERS + (count + means) * (each + _PER_IMAGE)


def images(root: Path, stage: Stage) -> int | None:
    """Return how many images a stage runs the tower over, at most; None before what it reads is there."""
    if stage.targets == (DATA,):
        path = root / data.IMAGES
        if not path.is_file():
            return None
        with zipfile.ZipFile(path) as archive:
            return len(archive.namelist())
    if stage.targets == (QUESTIONS,):
        return _asked(root, stage.config["protocols"])
    facts = root / corpora.target(stage.config["corpus"]) / "corpus.json"
    return int(read_json(facts)["images"]) if facts.is_file() else None


def _asked(root: Path, protocols: list[str]) -> int | None:
    """Count the images of the questions' tables."""
    import pyarrow.parquet as parquet

    paths = [root / f"questions/{name}.parquet" for name in protocols]
    if not all(path.is_file() for path in paths):
        return None
    shown: set[str | None] = set()
    for path in paths:
        shown |= set(parquet.read_table(path, columns=["image"])["image"].to_pylist())
    return len(shown - {None})


def features(root: Path, stage: Stage) -> tuple[int, int] | None:
    """Return (n, C): features an image and channels, at most; None before the base is there."""
    return shape_of(root / stage.places["base"] / "config.json")


def shape_of(path: Path) -> tuple[int, int] | None:
    """Return (n, C) of a model's or a tower's config.json, at most; None where it cannot be read. Imports no torch."""
    config = configuration(path)
    if config is None:
        return None
    if config.get("model_type") == "mobilevlm":
        sizes = config.get("mm_vision_config") or {}
        patch, side = sizes.get("patch_size"), sizes.get("image_size")
        named = re.search(r"patch(\d+)-(\d+)$", str(config.get("mm_vision_tower")))
        if named and not sizes:  # as openai/clip-vit-large-patch14-336 is
            patch, side = named.groups()
        return _grid(side, patch), int(config.get("mm_hidden_size") or _MOST)
    vision = config.get("vision_config") or config  # of a tower alone
    layer = config.get("vision_feature_layer", -2)
    width = int(vision.get("hidden_size") or 1024) * (len(layer) if isinstance(layer, list) else 1)
    return _grid(vision.get("image_size"), vision.get("patch_size")), width


def configuration(path: Path) -> dict[str, Any] | None:
    """Read a config.json for the plan; None where it is not there or damaged: the plan is no place to refuse a model."""
    try:
        found = read_json(path) if path.is_file() else None
    except UserError:
        return None
    return found if isinstance(found, dict) else None


def _grid(side: Any, patch: Any) -> int:
    known = str(side).isdigit() and str(patch).isdigit() and int(patch) > 0
    return (int(side) // int(patch)) ** 2 + 1 if known else _MOST
