"""The teacher's signal, and the vision tokens of it that energies read: caches that all students of a run share.

What a stage function finds in its context:

* ``teacher/signal``: config ``{training: {rows, turns}, threads, blind}``, of packed data; ``teacher/signal/NAME``: config
  ``{corpus, training: {rows}, threads}`` and as far as there are any ``template`` and ``limit``, of a corpus. Both may have
  ``dtype`` (of the teacher's weights) and ``signal`` (the preset's section), which are left out where they are as usual.
  Places: ``teacher``; ``vision`` (features); of a corpus ``corpus``, ``images``. Its ``choice``: ``cache_gb`` and ``whole``
  (students need whole distributions).
* ``teacher/count/NAME``: the same without ``signal``: counts the tokens that the form of a corpus's signal is chosen by.
* ``teacher/kept``, ``teacher/kept/NAME``: the same: vision tokens; a folder that holds only a reason where they do not fit.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UserError, read_json, write_json
from harness.caching import GB, Planned
from harness.signal_form import AUTO_GB, TOKENS_SHARE, Chosen, Signal, choose
from harness.stages import corpus as corpora
from harness.stages import data, encode, rows
from students.teacher_signal.forms import WIDTH, Kind, Size

if TYPE_CHECKING:
    from harness.plan import Stage
    from harness.workers import Context
    from students.teacher_signal.kept import KeptVision

#: Raise when the same configuration would give another signal.
STAGE_VERSION = 2
#: The same of counts and of vision tokens.
COUNT_VERSION = KEPT_VERSION = 1

SIGNAL, KEPT, COUNT = "teacher/signal", "teacher/kept", "teacher/count"
PLANS, PLANS_KEPT = "harness.stages.signal:planned", "harness.stages.signal:planned_tokens"
#: Of rows whose tokens were counted on some of them alone, so much more may come.
_MARGIN = 1.05
#: Vision tokens an image of a MobileVLM V2, whatever its tower sees.
_MOBILEVLM_TOKENS = 144
#: Of a file's header, and per image of its name.
_HEADERS, _PER_IMAGE = 50_000, 200


def record(target: str) -> str:
    """Return where it is said in what form the signal ``target`` is, and why."""
    return f"{target}.json"


def packed(context: Context) -> None:
    """Cache what the teacher says about every supervised token of the training data."""
    from students.blind import Blind
    from students.teacher_signal.packed import cache

    features = _begin(context)
    chosen = _sure(context)
    training = context.config["training"]
    cache(
        context.place("teacher"),
        data.load_training(context.root),
        context.out(SIGNAL),
        context.progress,
        rows=training["rows"],
        turns=training["turns"],
        device=context.settings.device,
        blind=Blind(**context.config["blind"]),
        form=chosen.form,
        dtype=dtype_of(context.stage),
        features=features,
    )
    _write_record(context, chosen)


def streamed(context: Context) -> None:
    """Cache what the teacher says about every supervised token of a corpus; an attempt that was stopped is gone on from."""
    from students.teacher_signal import streams

    features = _begin(context)
    chosen, config = _sure(context), context.config
    streams.cache(
        context.place("teacher"),
        rows.opened(context),
        context.out(context.stage.targets[0]),
        context.progress,
        rows=config["training"]["rows"],
        device=context.settings.device,
        form=chosen.form,
        dtype=dtype_of(context.stage),
        template=config.get("template"),
        limit=config.get("limit"),
        features=features,
        tokens=rows.place_of_tokens(context),
    )
    _write_record(context, chosen)


def count(context: Context) -> None:
    """Write how many supervised tokens the teacher would speak about, of a corpus."""
    from students.teacher_signal import streams

    _begin(context)
    config = context.config
    corpus = rows.opened(context)
    read = (config.get("template"), config.get("limit"), dtype_of(context.stage))
    tokens = streams.count(context.place("teacher"), corpus, *read, tokens=rows.place_of_tokens(context))
    margin = 1.0 if len(corpus) <= streams.COUNTED else _MARGIN
    write_json(context.out(context.stage.targets[0]), {"tokens": int(margin * tokens), "rows": len(corpus)})


def kept(context: Context) -> None:
    """Cache the teacher's vision tokens of each image, or say why they are not kept."""
    from students.blind import Blind
    from students.teacher_signal import kept as tokens

    features = _begin(context)
    out = context.out(context.stage.targets[0])
    found = tokens_of(context.root, context.stage)
    if found is None:
        raise RuntimeError(f"stage {context.stage.id} began before what it reads was there")
    if not found.fit:
        rows.leave(out, found.why)
        return
    teacher, device, dtype = context.place("teacher"), context.settings.device, dtype_of(context.stage)
    if "corpus" in context.config:
        tokens.cache_corpus(teacher, rows.opened(context), out, context.progress, device=device, dtype=dtype, features=features)
        return
    samples, _ = encode.load(context.root)
    blind = Blind(**context.config["blind"])
    tokens.cache_samples(teacher, samples, out, context.progress, device=device, blind=blind, dtype=dtype, features=features)


def open_kept(context: Context, key: dict[str, str]) -> KeptVision | None:
    """Open the vision tokens that a student's stage may use; None where they are not kept."""
    from students.teacher_signal.kept import KeptVision

    if "kept" not in context.stage.places:
        return None
    folder = context.place("kept")
    return None if (folder / rows.WHY).is_file() else KeptVision(folder, key, context.settings.device)


def _begin(context: Context) -> Path | None:
    """Give torch its threads; return where the images' features are stored for this stage, if they are."""
    from harness.stages.student import seen, use_torch  # it opens what is made here

    use_torch(context)
    return seen(context)


def _sure(context: Context) -> Chosen:
    chosen = decide(context.root, context.stage)
    if chosen is None:
        raise RuntimeError(f"stage {context.stage.id} began before what it reads was there")
    return chosen


def _write_record(context: Context, chosen: Chosen) -> None:
    folder, target = context.stage.targets
    errors = read_json(context.out(folder) / "meta.json")["errors"]
    write_json(context.out(target), {"form": str(chosen.form), "bytes": chosen.bytes, "why": chosen.why, "errors": errors})


# ---- before anything is written --------------------------------------------------------------------------------------------


def decide(root: Path, stage: Stage) -> Chosen | None:
    """Choose the form of a signal stage; None before what it is counted from is there. The plan and the stage ask the same.

    Raises:
        UserError: as :func:`choose`.
    """
    size = size_of(root, stage)
    if size is None:
        return None
    return choose(Signal(**stage.config.get("signal", {})), size, stage.choice.get("cache_gb"), bool(stage.choice.get("whole")))


def planned(root: Path, stage: Stage) -> Planned:
    """Return what a signal stage writes at most."""
    chosen = decide(root, stage)
    if chosen is None:
        return Planned(stage.config.get("signal", {}).get("form", "auto"), None)
    return Planned(str(chosen.form), chosen.bytes, chosen.why)


def dtype_of(stage: Stage) -> Kind:
    """Return what the teacher's weights are stored in."""
    found: Kind = stage.config.get("dtype", "float32")
    return found


def size_of(root: Path, stage: Stage) -> Size | None:
    """Return what a signal stage has to keep, from what lies in the run folder."""
    shape = _teacher(root, stage)
    if shape is None:
        return None
    if "corpus" in stage.config:
        path = root / stage.places["count"]
        if not path.is_file():
            return None
        counted = read_json(path)
        return Size(counted["tokens"], counted["rows"], shape[0], shape[1], dtype_of(stage))
    path = root / encode.TARGET / "meta.json"
    if not path.is_file():
        return None
    meta = read_json(path)
    mixed = stage.config["blind"]["says"] != "mean_image"  # a mixture is computed in float32
    return Size(meta["tokens"]["answers"], len(meta["ids"]), *shape, "float32" if mixed else dtype_of(stage))


def _teacher(root: Path, stage: Stage) -> tuple[int, int] | None:
    """Return V and H of a teacher, from its config.json; None before it is there."""
    config = _config(root, stage)
    if config is None:
        return None
    text = {**config, **(config.get("text_config") or {})}
    if "vocab_size" not in text or "hidden_size" not in text:
        where = root / stage.places["teacher"] / "config.json"
        raise UserError(f"{where} names no vocab_size and hidden_size of its language model")
    return int(text["vocab_size"]), int(text["hidden_size"])


def _config(root: Path, stage: Stage) -> dict[str, Any] | None:
    path = root / stage.places["teacher"] / "config.json"
    return read_json(path) if path.is_file() else None


# ---- vision tokens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """The vision tokens that a stage would keep: bytes at most, whether they fit, and the reason in one line."""

    bytes: int
    fit: bool
    why: str


def tokens_of(root: Path, stage: Stage) -> Tokens | None:
    """Say whether a teacher's vision tokens are kept; None before what they are counted from is there."""
    shape, config, images = _teacher(root, stage), _config(root, stage), _images(root, stage)
    if shape is None or config is None or images is None:
        return None
    each = _vision_tokens(config) * shape[1] * WIDTH[dtype_of(stage)]
    total = images * (each + _PER_IMAGE) + _HEADERS
    limit = TOKENS_SHARE * GB * (stage.choice.get("cache_gb") or AUTO_GB)
    why = f"vision tokens of {images:,} images take {total / GB:.3g} GB, allowed are {limit / GB:.3g}"
    return Tokens(total, total <= limit, why)


def planned_tokens(root: Path, stage: Stage) -> Planned:
    """Return what a stage that keeps vision tokens writes at most."""
    found = tokens_of(root, stage)
    form = f"vision tokens, {dtype_of(stage)}"
    if found is None:
        return Planned(form, None)
    return Planned(
        form if found.fit else "nothing: a live teacher says them", found.bytes if found.fit else _HEADERS, found.why
    )


def _images(root: Path, stage: Stage) -> int | None:
    if "corpus" in stage.config:
        path = root / corpora.target(stage.config["corpus"]) / "corpus.json"
        return int(read_json(path)["images"]) if path.is_file() else None
    path = root / data.IMAGES
    if not path.is_file():
        return None
    with zipfile.ZipFile(path) as archive:
        return len(archive.namelist()) + 1


def _vision_tokens(config: dict[str, Any]) -> int:
    if config.get("model_type") == "mobilevlm":
        return _MOBILEVLM_TOKENS
    vision = config.get("vision_config") or {}
    side, patch = vision.get("image_size"), vision.get("patch_size")
    return (side // patch) ** 2 + 1 if isinstance(side, int) and isinstance(patch, int) else 4096
