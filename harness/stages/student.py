"""The teacher's signal, and the students that learn from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.stages import data

if TYPE_CHECKING:
    from harness.workers import Context

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
    """Train one student: checkpoint, dynamics, betas, snapshots, and the weighting beside the checkpoint."""
    from students import distil as distiller
    from students import models, teachers
    from students.blind import Blind
    from students.options import DistilOptions
    from students.recipe import Variant, parse

    use_torch(context)
    config = context.config
    base = context.place("base")

    def inputs() -> distiller.Inputs:
        from students.data import pack

        samples = data.load_training(context.root)
        encoded = pack.encode(samples.samples, models.load(base).processor)
        teacher = context.place("teacher")
        said = teachers.TeacherSignal.load(
            context.root / SIGNAL, teachers.signal_key(teacher, samples, Blind(**config["blind"]))
        )
        return distiller.Inputs(base, samples, encoded, said, teacher)

    variant = None if config["variant"] is None else Variant.model_validate(config["variant"])
    distiller.distil(
        parse(config["recipe"]),
        DistilOptions.model_validate(config["training"]),
        context.remember("training", f"{base} {context.place('teacher')}", inputs),
        config["seed"],
        context.out(context.stage.targets[0]),
        context.progress,
        device=context.settings.device,
        variant=variant,
    )
