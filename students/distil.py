"""The distiller: one student from one recipe, out of a base checkpoint, data and a cached teacher signal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.base import UserError, unknown
from students import checkpoint, energies, models, taps, vocabulary, weightings
from students.cost import Cost
from students.data.pack import Batch, Encoded, collate, groups, schedule
from students.data.samples import TrainingSet
from students.dynamics import Recorder, Step
from students.features import Features, Seen
from students.losses import ChannelLosses, GradientNorms, Losses
from students.options import DistilOptions
from students.pretrain import Optimiser
from students.recipe import Recipe, Variant
from students.teachers import TeacherSignal, pixel_table

if TYPE_CHECKING:
    from students.models.llava import LlavaAdapter
    from students.weightings._base import Weighted

__all__ = ["DistilOptions", "Inputs", "distil"]

Device = Literal["cpu", "cuda"]
#: Logits kept, over the steps that wait for a flush, to be looked at if one of them is not finite.
EVIDENCE_LIMIT = 16_000_000


@dataclass(frozen=True)
class Inputs:
    """What every student of a run shares.

    Attributes:
        base: checkpoint folder that the students start from.
        data: the samples.
        encoded: the samples' tokens, made with the base's processor.
        signal: the teacher's, needed by every channel but "ce"; with it, a "ce" student records teacher histograms too.
        teacher: checkpoint folder, for energies that read more of the teacher than the signal holds.
    """

    base: Path
    data: TrainingSet
    encoded: Encoded
    signal: TeacherSignal | None = None
    teacher: Path | None = None


def distil(
    recipe: Recipe,
    options: DistilOptions,
    inputs: Inputs,
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
        inputs: base, data and teacher.
        seed: for the order of the samples and the start of the weighting.
        out: folder for student/, dynamics.jsonl, betas.parquet, snapshots.npz, cost.json, weighting.safetensors, weighting.json
            and energies.safetensors (parameters and state of the energies, where they have any).
        progress: called with finished and total steps.
        device: "cpu" or "cuda".
        variant: options of the weighting (its ``d`` included) and of the energies.

    Raises:
        UserError: for input that does not fit together.
        FloatingPointError: for a loss, weight or gradient that is not finite, naming channel, step and samples; they and
            their logits are left in ``out/failure``.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but torch sees no GPU; allowed here: 'cpu'")
    with _deterministic():
        torch.manual_seed(seed)
        cost = Cost(torch.device(device))
        training = _Training(recipe, options, inputs, seed, out, device, variant or Variant())
        rows = groups(inputs.encoded, options.turns, seed)
        for step, members in enumerate(schedule(rows, options.steps, options.rows, seed), start=1):
            training.step(step, members)
            if step % options.flush_every == 0 or step == options.steps:
                training.recorder.flush()
                progress(step, options.steps)
        training.save()
        shared = 0 if inputs.signal is None else len(inputs.signal.ids)
        cost.write(out, training.recorder.samples, shared, training.live.passes if training.live else 0)


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


@dataclass
class _Part:
    """One micro-batch after its forward pass."""

    batch: Batch
    hidden: Tensor
    logits: Tensor
    teacher: Tensor | None
    losses: ChannelLosses


class _Training:
    """The state of one run of :func:`distil`; the arguments are the same."""

    def __init__(
        self, recipe: Recipe, options: DistilOptions, inputs: Inputs, seed: int, out: Path, device: Device, variant: Variant
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.recipe, self.options, self.inputs, self.out, self.variant = recipe, options, inputs, out, variant
        AcceleratorState._reset_state(reset_partial_state=True)  # it is global, and keeps the first device and precision
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=options.precision)
        where = self.accelerator.device
        self.adapter: LlavaAdapter = models.load(inputs.base, str(where))
        vocabulary = _check(recipe, inputs, self.adapter, variant)
        self.wanted = frozenset().union(*(energies.needs(c) for c in recipe.energies)) & taps.NAMES
        self.live = _live(self.wanted, recipe, inputs, str(where))
        widths = taps.widths(self.wanted, self.adapter, self.live.adapter) if self.live else {}
        # generators of their own, so that no loss or weighting moves anything else's random numbers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.losses = Losses(recipe, variant, widths, vocabulary).to(where)
        name = recipe.weighting or "fixed"
        self.features = Features(weightings.features(name, variant.weighting), self.adapter, inputs.signal, inputs.data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.weighting = weightings.build(name, recipe.channels, self.features.width or None, **variant.weighting).to(where)
        for channel in recipe.energies:
            self.weighting.accept(channel, self.losses.energy(channel).zero_at_match, self.losses.energy(channel).bounds)
        self._optimisers()
        self.pixels = pixel_table(self.adapter, inputs.data)
        out.mkdir(parents=True, exist_ok=True)
        self.recorder = Recorder(out, recipe.channels, inputs.data, inputs.signal, options.betas_every, options.steps)
        self.adapter.model.train()

    def _optimisers(self) -> None:
        """Make the student's optimiser, the energies' AdamW under the same schedule, and the weighting's at a constant rate."""
        options = self.options
        self.optimiser = Optimiser(
            self.adapter.trainable(), lr=options.lr, muon_lr=options.muon_lr, steps=options.steps, warmup=options.warmup
        )
        groups = [
            {"params": list(energy.parameters()), "lr": options.lr * energy.rate}
            for energy in map(self.losses.energy, self.recipe.energies)
            if any(True for _ in energy.parameters())
        ]
        if groups:
            self.optimiser.add(torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0))
        learned, multiple = list(self.weighting.parameters()), self.weighting.lr_multiple
        rate = options.weighting_lr * self.weighting.rate if multiple is None else options.lr * multiple
        self.weighting_lr = rate if learned else 0.0
        self.weighting_optimiser = torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.98), weight_decay=0.0) if learned else None

    def step(self, number: int, members: list[list[int]]) -> None:
        """Take one optimiser step on packed rows of sample numbers; nothing is read back from the device."""
        started = time.perf_counter()
        needs = self.weighting.needs
        if number == 1 and "losses" in needs:
            self.weighting.on_optimiser_step(0, self._evaluate(members))
        width = self.options.micro_rows or len(members)
        total = sum(map(len, members))
        lr = self.optimiser.lr
        parts, outs = [], []
        gradients = GradientNorms(self.recipe.channels, self.adapter) if "gradient_norms" in needs else None
        for start in range(0, len(members), width):
            part = self._forward(number, members[start : start + width])
            seen = Seen(part.batch, part.hidden.detach(), part.logits.detach(), part.teacher)
            out = self.weighting(part.losses.by_channel, features=self.features(seen), mask=part.losses.mask)
            if gradients is not None:
                gradients.add(part.losses, total)
            self.accelerator.backward(out.total * (len(part.batch.indices) / total))
            parts.append(self._detached(number, part, -(-len(members) // width)))
            outs.append(out)
        norm = torch.nn.utils.clip_grad_norm_(self.optimiser.parameters, self.options.clip)
        if gradients is not None:
            self.weighting.after_backward(gradients.norms())
        self.optimiser.step()
        if self.weighting_optimiser is not None:
            self.weighting_optimiser.step()
            self.weighting_optimiser.zero_grad(set_to_none=True)
        if "losses" in needs:
            self.weighting.on_optimiser_step(number, _joined([part.losses for part in parts]))
        if "second_forward" in needs:
            self.weighting.after_step(self._evaluate(members))
        self.losses.on_optimiser_step(number, self.options.steps)  # last, so that before and after are the same losses
        self._record(number, parts, outs, norm, lr, started)

    def _forward(self, number: int, rows: list[list[int]]) -> _Part:
        """Run the student on packed rows, and compare it with the teacher."""
        host = collate(self.inputs.encoded, rows, self.pixels)
        batch = host.to(self.accelerator.device)
        with self.accelerator.autocast():
            hidden, mine = self.adapter.observe(batch, self.wanted)
            logits = self.adapter.head(self.adapter.supervised(hidden, batch))
        teacher = self._teacher(number, host)
        paired = taps.pair(mine, self.live.observe(rows, self.wanted), batch) if self.live else None
        losses = self.losses(logits, batch.labels, batch.sample, len(batch.indices), teacher, paired)
        return _Part(batch, hidden, logits, teacher, losses)

    @torch.no_grad()
    def _evaluate(self, members: list[list[int]]) -> dict[str, Tensor]:
        """Losses {channel: [samples that have it]} of a step's rows as the student stands, without touching any state."""
        self.losses.eval()
        width = self.options.micro_rows or len(members)
        found = [self._forward(0, members[k : k + width]).losses for k in range(0, len(members), width)]
        self.losses.train()
        return _joined(found)

    def _teacher(self, number: int, host: Batch) -> Tensor | None:
        """Teacher logits [N, V] of the batch's tokens, if this step uses them."""
        signal, data = self.inputs.signal, self.inputs.data
        if signal is None or not (self.recipe.energies or self.features.names or number in (1, self.options.steps)):
            return None
        if not np.array_equal(signal.labels(host.indices), host.labels.numpy()):
            answers = self.inputs.encoded.answers
            wrong = [data.samples[k].id for k in host.indices if list(signal.labels([k])) != list(answers[k])]
            raise UserError(f"the teacher signal was made for another reply of sample(s) {', '.join(wrong[:5])}; remake it")
        return signal.logits(host.indices).to(self.accelerator.device, non_blocking=True)

    def _detached(self, number: int, part: _Part, parts: int) -> _Part:
        """Let go of the graph, of the hidden states, and of logits that nobody will look at."""
        losses = ChannelLosses({c: v.detach() for c, v in part.losses.by_channel.items()}, part.losses.mask)
        small = part.logits.numel() * parts * self.options.flush_every <= EVIDENCE_LIMIT
        keep = small or number in (1, self.options.steps)  # those two steps' logits become histograms
        logits, teacher = part.logits.detach(), part.teacher
        if not keep:
            logits, teacher = logits[:0], None if teacher is None else teacher[:0]
        return _Part(part.batch, part.hidden[:0].detach(), logits, teacher, losses)

    def _record(self, number: int, parts: list[_Part], outs: list[Weighted], norm: Tensor, lr: float, started: float) -> None:
        """Hand one step to the recorder, its micro-batches joined."""
        channels = self.recipe.channels
        sizes = torch.tensor([len(p.batch.indices) for p in parts], dtype=torch.float32)
        shares = (sizes / sizes.sum()).to(norm.device)
        logits = torch.cat([p.logits for p in parts])
        teacher = torch.cat([p.teacher for p in parts if p.teacher is not None]) if parts[0].teacher is not None else None
        for when, at in (("early", 1), ("late", self.options.steps)):
            if number == at:
                self.recorder.snapshot(when, number, student=logits, **({} if teacher is None else {"teacher": teacher}))
        evidence = {"labels": torch.cat([p.batch.labels for p in parts]), "student_logits": logits}
        evidence |= {} if teacher is None else {"teacher_logits": teacher}
        self.recorder.add(
            Step(
                step=number,
                indices=tuple(k for p in parts for k in p.batch.indices),
                losses=_table([p.losses.by_channel for p in parts], channels),
                weights=_table([out.weights for out in outs], channels),
                present=_table([p.losses.presence() for p in parts], channels),
                scalars=torch.stack([
                    (shares * torch.stack([out.regulariser for out in outs])).sum(),
                    (shares * torch.stack([out.total.detach() for out in outs])).sum(),
                    norm.detach(),
                ]).float(),
                lr=lr,
                weighting_lr=self.weighting_lr,
                tokens=len(evidence["labels"]),
                seconds=time.perf_counter() - started,
                evidence=evidence,
            )
        )  # fmt: skip

    def save(self) -> None:
        """Write the checkpoint, what learned beside it, and the records; everything in them was checked to be finite."""
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
            "logs": {name: int(count) for name, count in self.losses.logs.items()},
        }
        checkpoint.save_weighting(self.weighting, self.recipe.weighting or "fixed", facts, self.out)
        checkpoint.save_energies(self.losses, self.out)
        self.recorder.finish()


def _joined(parts: Sequence[ChannelLosses]) -> dict[str, Tensor]:
    """Return the losses of a step's micro-batches as one: {channel: [samples that have it]}."""
    present = [part.present() for part in parts]
    return {channel: torch.cat([p[channel] for p in present]) for channel in present[0]}


def _table(parts: Sequence[Mapping[str, Tensor]], channels: Sequence[str]) -> Tensor:
    """Return [K, B] float32 from {channel: [micro-batch]} of each micro-batch."""
    return torch.stack([torch.cat([part[c].detach() for part in parts]) for c in channels]).float()


def _live(wanted: frozenset[str], recipe: Recipe, inputs: Inputs, device: str) -> taps.LiveTeacher | None:
    """Load the teacher where an energy reads more of it than its signal holds."""
    if not wanted:
        return None
    if inputs.teacher is None or inputs.signal is None:
        raise UserError(
            f"recipe {recipe.name!r} reads {', '.join(sorted(wanted))} of the teacher; its checkpoint was not given"
        )
    return taps.LiveTeacher(inputs.teacher, inputs.data, device, inputs.signal.blind_teacher)


def _check(recipe: Recipe, inputs: Inputs, adapter: LlavaAdapter, variant: Variant) -> int | None:
    """Refuse inputs that do not belong together; return the size of the vocabulary that both models share."""
    encoded, data, signal = inputs.encoded, inputs.data, inputs.signal
    if len(encoded) != len(data):
        raise UserError(f"{len(encoded)} encoded samples do not fit {len(data)} samples")
    for channel in variant.energies:
        if channel not in recipe.energies:
            raise unknown(f"channel in the variant of {recipe.name!r}:", channel, recipe.energies)
    if signal is None:
        if recipe.energies:
            raise UserError(f"recipe {recipe.name!r} needs a teacher signal for: {', '.join(recipe.energies)}")
        return None
    if signal.ids != tuple(s.id for s in data):
        raise UserError("the teacher signal was made for other samples, or another order of them; remake it")
    own = vocabulary.tokens(adapter.processor.tokenizer)
    return vocabulary.check(own, signal.vocabulary, adapter.vocabulary_size, signal.vocabulary_size)
