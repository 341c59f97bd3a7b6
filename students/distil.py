"""The distiller: one student from one recipe, out of a base checkpoint, data and a teacher, cached or live."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.base import UserError
from students import resume
from students.cost import Cost, max_of
from students.distributed import ranks, reached
from students.inputs import Inputs, StreamInputs
from students.options import DistilOptions
from students.recipe import Recipe, Variant
from students.shortage import Load, explained
from students.tracking import Trackers
from students.training import Device, Training

__all__ = ["DistilOptions", "Inputs", "StreamInputs", "distil"]

#: What a user can change where memory is short.
SETTINGS = ("micro_rows", "gradient_checkpointing", "max_length", "lora", "teacher_dtype", "frozen_dtype")


def distil(
    recipe: Recipe,
    options: DistilOptions,
    inputs: Inputs | StreamInputs,
    seed: int,
    out: Path,
    progress: Callable[[int, int], None],
    device: Device = "cpu",
    variant: Variant | None = None,
    trackers: Trackers | None = None,
) -> None:
    """Train one student and write its checkpoint and records (DESIGN section 5) into ``out``.

    The loss of a sample is the mean over its supervised tokens, a step's the mean over its samples; channels are balanced by
    the recipe's weighting, which has its own AdamW. Samples, their order and the student's start depend on the seed alone,
    so all recipes see the same.

    Under a launcher every rank calls this with the same arguments (:mod:`students.distributed`): the ranks share each step's
    rows, the result is one process's up to rounding, and rank 0 alone writes it and reports progress. All return, or fail,
    together.

    Args:
        recipe: what to train on; one channel alone is minimised as it is.
        options: steps, sizes and rates.
        inputs: base, data and teacher; packed samples in memory, or a corpus that is streamed.
        seed: for the order of the samples and the start of the weighting.
        out: folder for student/, dynamics.jsonl, betas.parquet, snapshots.npz, cost.json, training.json (rows that were taken,
            cut and without images, what learned and what was frozen), weighting.safetensors, weighting.json, and where there
            are any energies.safetensors (parameters and state of the energies) and adapter/ (LoRA). A resume point that an
            earlier attempt left in it is gone on from, to the same result.
        progress: called with finished and total steps.
        device: "cpu" or "cuda".
        variant: options of the weighting (its ``d`` included) and of the energies.
        trackers: where else the records go.

    Raises:
        UserError: for input that does not fit together, and for too little memory, naming the batch and what to change.
        FloatingPointError: for a loss, weight or gradient that is not finite, naming channel, step and samples; they and
            their logits are left in ``out/failure``.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but torch sees no GPU; allowed here: 'cpu'")
    with _deterministic():
        torch.manual_seed(seed)
        together = ranks()  # chooses this process's GPU, whose memory is counted from here on
        cost = Cost(torch.device(device))
        load = Load()
        settings = {name: getattr(options, name) for name in SETTINGS}
        with explained(load, settings), reached():
            with together.together():
                made = Training(recipe, options, inputs, seed, out, device, variant or Variant(), trackers)
            with closing(made) as training:
                training.join()
                if together.rank:  # dropout draws for other rows; rank 0 draws as one process does
                    torch.manual_seed(resume.seed_of(seed, together.rank))
                _train(training, cost, load, progress)
        shared, own = (training.voice.shared, training.voice.passes) if training.voice else (0, 0)
        found = together.gather((own, cost.peak()))
        with together.together():
            if together.first:
                peak = max_of([peak for _, peak in found])
                cost.write(out, training.recorder.samples, shared, sum(passes for passes, _ in found), peak)
                resume.clear(out)


def _train(training: Training, cost: Cost, load: Load, progress: Callable[[int, int], None]) -> None:
    """Take all steps, or those after the newest resume point, and save the student."""
    options, steps, feed = training.options, training.steps, training.feed
    done = resume.start(training, cost)
    with training.ranks.together():
        training.log.open(done)
    training.load = load
    if done < steps:
        feed.ahead(training.micro(feed.members(done + 1)))
    for step in range(done + 1, steps + 1):
        members = feed.members(step)
        if step < steps:
            feed.ahead(training.micro(feed.members(step + 1)))
        training.step(step, members)
        saves = options.save_every is not None and step % options.save_every == 0 and step < steps
        if step % options.flush_every == 0 or step == steps or saves:
            training.flush()
            if training.ranks.first:
                progress(step, steps)
        if saves:
            resume.save(training, step, cost)
    training.save()


@contextmanager
def _deterministic() -> Iterator[None]:
    """Ask torch for deterministic algorithms where it has them, and restore the caller's setting."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # torch declares no types for it
    fill = memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # costs time and changes no result of ours
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fill
