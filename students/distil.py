"""The distiller: one student from one recipe, out of a base checkpoint, data and a cached teacher signal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.base import UserError, unknown
from students import checkpoint, energies, models, weightings
from students.batch import TokenBatch, label_nll, sample_mean
from students.data.pack import Batch, Encoded, collate, groups, schedule
from students.data.samples import TrainingSet
from students.dynamics import Recorder, Step
from students.options import DistilOptions
from students.pretrain import Optimiser
from students.recipe import Recipe, Variant
from students.teachers import TeacherSignal, pixel_table

if TYPE_CHECKING:
    from students.models.llava import LlavaAdapter
    from students.weightings._base import Weighting

__all__ = ["DistilOptions", "distil"]

Device = Literal["cpu", "cuda"]


def distil(
    recipe: Recipe,
    options: DistilOptions,
    base: Path,
    data: TrainingSet,
    encoded: Encoded,
    signal: TeacherSignal | None,
    seed: int,
    out: Path,
    progress: Callable[[int, int], None],
    device: Device = "cpu",
    variant: Variant | None = None,
) -> None:
    """Train one student and write its checkpoint and records (DESIGN section 5) into ``out``.

    The loss of a sample is the mean over its supervised tokens, a step's the mean over its samples; channels are balanced by
    the recipe's weighting, which has its own AdamW. Samples, their order and the student's start depend on the seed alone,
    so all recipes see the same.

    Args:
        recipe: what to train on; one channel alone is minimised as it is.
        options: steps, sizes and rates.
        base: checkpoint folder that the student starts from.
        data: the samples.
        encoded: the samples' tokens, made with the base's processor.
        signal: the teacher's, needed by every channel but "ce"; with it, a "ce" student records teacher histograms too.
        seed: for the order of the samples and the start of the weighting.
        out: folder for student/, dynamics.jsonl, betas.parquet, snapshots.npz, weighting.safetensors and weighting.json.
        progress: called with finished and total steps.
        device: "cpu" or "cuda".
        variant: options of the weighting (its ``d`` included) and of the energies.

    Raises:
        UserError: for input that does not fit together.
        FloatingPointError: for a loss, weight or gradient that is not finite, naming channel, step and samples.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but torch sees no GPU; allowed here: 'cpu'")
    with _deterministic():
        torch.manual_seed(seed)
        training = _Training(recipe, options, base, data, encoded, signal, seed, out, device, variant or Variant())
        rows = groups(encoded, options.turns, seed)
        for step, members in enumerate(schedule(rows, options.steps, options.rows, seed), start=1):
            training.step(step, members)
            if step % options.flush_every == 0 or step == options.steps:
                training.recorder.flush()
                progress(step, options.steps)
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


class _Training:
    """The state of one run of :func:`distil`; the arguments are the same."""

    def __init__(
        self,
        recipe: Recipe,
        options: DistilOptions,
        base: Path,
        data: TrainingSet,
        encoded: Encoded,
        signal: TeacherSignal | None,
        seed: int,
        out: Path,
        device: Device,
        variant: Variant,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.recipe, self.options, self.data, self.encoded, self.signal, self.out = recipe, options, data, encoded, signal, out
        self.variant = variant
        AcceleratorState._reset_state(reset_partial_state=True)  # it is global, and keeps the first device and precision
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=options.precision)
        self.adapter: LlavaAdapter = models.load(base, str(self.accelerator.device))
        _check(recipe, data, encoded, signal, self.adapter, variant)
        self.energies = {c: energies.build(c, **variant.energies.get(c, {})) for c in recipe.energies}
        self.weighting = _weighting(recipe, variant, self.adapter, signal, seed).to(self.accelerator.device)
        self.optimiser = Optimiser(
            self.adapter.trainable(), lr=options.lr, muon_lr=options.muon_lr, steps=options.steps, warmup=options.warmup
        )
        learned = list(self.weighting.parameters())
        self.weighting_lr = options.weighting_lr * self.weighting.rate if learned else 0.0
        self.weighting_optimiser = (
            torch.optim.AdamW(learned, lr=self.weighting_lr, betas=(0.9, 0.98), weight_decay=0.0) if learned else None
        )
        self.pixels = pixel_table(self.adapter, data)
        self.logs: dict[str, Tensor] = {}
        out.mkdir(parents=True, exist_ok=True)
        self.recorder = Recorder(out, recipe.channels, data, signal, options.betas_every, options.steps)
        self.adapter.model.train()

    def step(self, number: int, members: list[list[int]]) -> None:
        """Take one optimiser step on packed rows of sample numbers; nothing is read back from the device."""
        started = time.perf_counter()
        host = collate(self.encoded, members, self.pixels)
        batch = host.to(self.accelerator.device)
        with self.accelerator.autocast():
            hidden = self.adapter.hidden(batch)
            logits = self.adapter.head(self.adapter.supervised(hidden, batch))
        teacher = self._teacher(number, host)
        losses = self._losses(logits, teacher, batch)
        out = self.weighting(losses, features=self._features(hidden, batch))
        lr = self.optimiser.lr
        self.accelerator.backward(out.total)
        norm = torch.nn.utils.clip_grad_norm_(self.optimiser.parameters, self.options.clip)
        self.optimiser.step()
        if self.weighting_optimiser is not None:
            self.weighting_optimiser.step()
            self.weighting_optimiser.zero_grad(set_to_none=True)
        for when, at in (("early", 1), ("late", self.options.steps)):
            if number == at:
                self.recorder.snapshot(when, number, student=logits, **({} if teacher is None else {"teacher": teacher}))
        self.recorder.add(
            Step(
                step=number,
                indices=host.indices,
                losses=torch.stack([losses[c].detach() for c in self.recipe.channels]),
                weights=torch.stack([out.weights[c] for c in self.recipe.channels]),
                scalars=torch.stack([out.regulariser, out.total.detach(), norm.detach()]),
                lr=lr,
                weighting_lr=self.weighting_lr,
                tokens=len(host.labels),
                seconds=time.perf_counter() - started,
            )
        )

    def _teacher(self, number: int, host: Batch) -> Tensor | None:
        """Teacher logits [N, V] of the batch's tokens, if this step uses them."""
        if self.signal is None or not (self.energies or number in (1, self.options.steps)):
            return None
        if not np.array_equal(self.signal.labels(host.indices), host.labels.numpy()):
            wrong = [
                self.data.samples[k].id for k in host.indices if list(self.signal.labels([k])) != list(self.encoded.answers[k])
            ]
            raise UserError(f"the teacher signal was made for another reply of sample(s) {', '.join(wrong[:5])}; remake it")
        return self.signal.logits(host.indices).to(self.accelerator.device, non_blocking=True)

    def _losses(self, logits: Tensor, teacher: Tensor | None, batch: Batch) -> dict[str, Tensor]:
        """Per-sample losses {channel: [B]} float32."""
        losses = {}
        for channel in self.recipe.channels:
            if channel == "ce":
                values, level = label_nll(logits, batch.labels), "token"
            else:
                if teacher is None:
                    raise ValueError(f"channel {channel!r} was asked for without a teacher")
                energy = self.energies[channel]
                values, level = energy(TokenBatch(logits, teacher, batch.labels, batch.sample)), energy.level
                for name, count in energy.logs.items():
                    key = f"{channel}.{name}"
                    self.logs[key] = self.logs[key] + count if key in self.logs else count
            losses[channel] = sample_mean(values, batch.sample, len(batch.indices)) if level == "token" else values
        return losses

    def _features(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Detached features [B, F] float32 that the weighting asks for, each layer-normed without learned parameters."""
        parts = []
        for name in sorted(self.weighting.needs):
            state = (
                self.adapter.prompt_state(hidden, batch).detach()
                if name == "student_prompt"
                else _prompt(self.signal, batch.indices)
            )
            state = state.to(hidden.device).float()
            parts.append(torch.nn.functional.layer_norm(state, state.shape[-1:]))
        return torch.cat(parts, 1) if parts else None

    def save(self) -> None:
        """Write the checkpoint, the weighting beside it, and the records; everything in them was checked to be finite."""
        self.adapter.model.eval()
        broken = [name for name, p in self.adapter.trainable() if not bool(p.isfinite().all())]
        if broken:
            raise FloatingPointError(f"after step {self.options.steps} weights are not finite: {', '.join(broken[:3])}")
        self.adapter.save(self.out / "student")
        facts = {
            "options": self.variant.weighting,
            "d": getattr(self.weighting, "d", None),
            "feature_dim": self.weighting.feature_dim,
            "needs": sorted(self.weighting.needs),
            "lr": self.weighting_lr,
            "betas": self.recorder.final,
            "logs": {name: int(count) for name, count in self.logs.items()},
        }
        checkpoint.save_weighting(self.weighting, self.recipe.weighting or "fixed", facts, self.out)
        self.recorder.finish()


def _prompt(signal: TeacherSignal | None, indices: Sequence[int]) -> Tensor:
    if signal is None:
        raise ValueError("the weighting reads the teacher's prompt state, and there is no teacher signal")
    return signal.prompt_state(indices)


def _weighting(recipe: Recipe, variant: Variant, adapter: LlavaAdapter, signal: TeacherSignal | None, seed: int) -> Weighting:
    """Build the recipe's weighting with a generator of its own, so that it moves nothing else's random numbers."""
    widths: Mapping[str, int] = {"student_prompt": adapter.hidden_size} | (
        {} if signal is None else {"teacher_prompt": signal.prompt.shape[1]}
    )
    name, settings = recipe.weighting or "fixed", dict(variant.weighting)
    feature = settings.get("features", "student_prompt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weighting = weightings.build(name, recipe.channels, widths.get(feature, adapter.hidden_size), **settings)
    for need in weighting.needs:
        if need not in widths:
            raise unknown(f"feature that weighting {name!r} needs:", need, widths)
    return weighting


def _check(
    recipe: Recipe,
    data: TrainingSet,
    encoded: Encoded,
    signal: TeacherSignal | None,
    adapter: LlavaAdapter,
    variant: Variant,
) -> None:
    """Refuse inputs that do not belong together."""
    if len(encoded) != len(data):
        raise UserError(f"{len(encoded)} encoded samples do not fit {len(data)} samples")
    for channel in variant.energies:
        if channel not in recipe.energies:
            raise unknown(f"channel in the variant of {recipe.name!r}:", channel, recipe.energies)
    if signal is None:
        if recipe.energies:
            raise UserError(f"recipe {recipe.name!r} needs a teacher signal for: {', '.join(recipe.energies)}")
        return
    if signal.ids != tuple(s.id for s in data):
        raise UserError("the teacher signal was made for other samples, or another order of them; remake it")
    if signal.vocabulary_size != adapter.vocabulary_size:
        raise UserError(
            f"teacher and student have vocabularies of {signal.vocabulary_size} and {adapter.vocabulary_size} tokens;"
            " they must be equal"
        )
