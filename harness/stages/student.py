"""The students: what they are opened with, and their training."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from harness.stages import encode, rows, signal

if TYPE_CHECKING:
    from harness.workers import Context
    from students.inputs import Inputs, StreamInputs
    from students.options import DistilOptions
    from students.tracking import Trackers

#: Raise when the same configuration would give other weights.
STAGE_VERSION = 2


def use_torch(context: Context) -> None:
    """Give torch this worker's number of threads; called before it computes anything."""
    import torch

    torch.set_num_threads(context.settings.threads)


def distil(context: Context) -> None:
    """Train one student: checkpoint, dynamics, betas, snapshots, and the weighting beside the checkpoint.

    On a corpus where the stage names one, else on the packed training data; an attempt that was stopped is gone on from.
    """
    from students import distil as distiller
    from students.options import DistilOptions
    from students.recipe import Variant, parse

    use_torch(context)
    config = context.config
    options = DistilOptions.model_validate(config["training"])
    places = " ".join(f"{name}={context.place(name)}" for name in sorted(context.stage.places))
    opened = _streamed if "corpus" in config else _packed
    variant = None if config["variant"] is None else Variant.model_validate(config["variant"])
    distiller.distil(
        parse(config["recipe"]),
        options,
        context.remember("training", f"{places} {_reads(options)}", lambda: opened(context, options)),
        config["seed"],
        context.out(context.stage.targets[0]),
        context.progress,
        device=context.settings.device,
        variant=variant,
        trackers=_trackers(context),
    )


def _trackers(context: Context) -> Trackers | None:
    """Return where the training's numbers go beside its records, for ``--track``."""
    from students.tracking import Trackers

    if not context.settings.track:
        return None
    config, place = context.config, PurePosixPath(context.stage.targets[0])
    run = str(place.relative_to("students") if place.parts[0] == "students" else place)
    facts = {name: config[name] for name in ("recipe", "seed", "training")}
    shared = context.root / "tracking"
    return Trackers(context.settings.track, shared / run, shared, context.root.name, run, facts)


def _reads(options: DistilOptions) -> str:
    """Say what of the options shapes the opened inputs, so that students which share them open them once."""
    names = ("live_teacher", "teacher_dtype", "template", "max_length")
    return " ".join(f"{name}={getattr(options, name)}" for name in names)


def _packed(context: Context, options: DistilOptions) -> Inputs:
    """Read the training data, and the teacher's signal unless the teacher is live."""
    from students.blind import Blind
    from students.inputs import Inputs
    from students.teacher_signal.keys import signal_key
    from students.teacher_signal.reading import TeacherSignal

    base, teacher = context.place("base"), context.place("teacher")
    (samples, encoded), blind = encode.load(context.root), Blind(**context.config["blind"])
    if options.live_teacher:
        return Inputs(base, samples, encoded, None, teacher, blind, seen(context))
    key = signal_key(teacher, samples, blind, options.teacher_dtype)
    said = TeacherSignal.load(context.root / signal.SIGNAL, key)
    return Inputs(base, samples, encoded, said, teacher, blind, seen(context), signal.open_kept(context, key))


def seen(context: Context) -> Path | None:
    """Return where the images' features are stored for this stage, or None (harness/vision_plan.py)."""
    return context.place("vision") if "vision" in context.stage.places else None


def _streamed(context: Context, options: DistilOptions) -> StreamInputs:
    """Open the corpus, and the teacher's signal of it where the student's stage reads one."""
    from students.inputs import StreamInputs
    from students.teacher_signal.keys import stream_key
    from students.teacher_signal.stream_reading import StreamSignal

    places, base, corpus = context.stage.places, context.place("base"), rows.opened(context)
    stored = rows.place_of_tokens(context)
    teacher = context.place("teacher") if "teacher" in places else None
    if teacher is None or "signal" not in places:
        return StreamInputs(base, corpus, teacher, seen(context), tokens=stored)
    said = StreamSignal.load(
        context.place("signal"), stream_key(teacher, corpus, options.template, options.teacher_limit, options.teacher_dtype)
    )
    kept = signal.open_kept(context, stream_key(teacher, corpus, dtype=options.teacher_dtype))
    return StreamInputs(base, corpus, teacher, seen(context), said, kept, stored)
