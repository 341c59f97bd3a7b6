"""The teacher's signal, and the students that learn from it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from harness.stages import data

if TYPE_CHECKING:
    from harness.workers import Context
    from students.inputs import Inputs, StreamInputs
    from students.options import DistilOptions
    from students.tracking import Trackers

#: Raise when the same configuration would give another signal or other weights.
STAGE_VERSION = 2

SIGNAL = "teacher/signal"


def use_torch(context: Context) -> None:
    """Give torch this worker's number of threads; called before it computes anything."""
    import torch

    torch.set_num_threads(context.settings.threads)


def signal(context: Context) -> None:
    """Cache what the teacher says about every supervised token."""
    from students import teachers
    from students.blind import Blind

    use_torch(context)
    samples = data.load_training(context.root)
    training = context.config["training"]
    teachers.cache(
        context.place("teacher"),
        samples,
        context.out(SIGNAL),
        context.progress,
        rows=training["rows"],
        turns=training["turns"],
        device=context.settings.device,
        blind=Blind(**context.config["blind"]),
    )


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
        context.remember("training", f"{places} live={options.live_teacher}", lambda: opened(context, options)),
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


def _packed(context: Context, options: DistilOptions) -> Inputs:
    """Read the training data, and the teacher's signal unless the teacher is live."""
    from students import models, teachers
    from students.blind import Blind
    from students.data import pack
    from students.inputs import Inputs

    base, teacher = context.place("base"), context.place("teacher")
    samples, blind = data.load_training(context.root), Blind(**context.config["blind"])
    encoded = pack.encode(samples.samples, models.load(base).processor)
    if options.live_teacher:
        return Inputs(base, samples, encoded, None, teacher, blind)
    said = teachers.TeacherSignal.load(context.root / SIGNAL, teachers.signal_key(teacher, samples, blind))
    return Inputs(base, samples, encoded, said, teacher, blind)


def _streamed(context: Context, options: DistilOptions) -> StreamInputs:  # noqa: ARG001 - as _packed
    """Open the corpus."""
    from students.data.corpus import IndexedCorpus
    from students.inputs import StreamInputs

    places = context.stage.places
    corpus = IndexedCorpus(context.place("corpus"), context.place("images") if "images" in places else None)
    return StreamInputs(context.place("base"), corpus, context.place("teacher") if "teacher" in places else None)
