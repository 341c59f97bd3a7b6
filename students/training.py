"""One training, step by step: forward passes, losses, weights, optimisers, records."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from harness.base import UserError, remove, write_json
from students import checkpoint, energies, gathering, inputs, models, resume, taps, weightings
from students.distributed import ranks
from students.dynamics import SNAPSHOT_LIMIT, Recorder, Step
from students.features import Features, Seen
from students.feed import Members, Part
from students.head import Head, Read, shown, spoken
from students.learning import Learning
from students.losses import ChannelLosses, GradientNorms, Losses
from students.optimise import Optimiser
from students.options import DistilOptions
from students.parallel import Parallel, handlers
from students.recipe import Recipe, Variant
from students.shortage import Load
from students.tracking import Log, Trackers

if TYPE_CHECKING:
    from students.data.pack import Batch
    from students.inputs import Inputs, StreamInputs
    from students.voice import Said
    from students.weightings._base import Weighted

Device = Literal["cpu", "cuda"]
#: Logits kept, over the steps that wait for a flush, to be looked at if one of them is not finite.
EVIDENCE_LIMIT = 16_000_000

#: Ids of replaced rows that training.json names.
NAMED = 20


@dataclass
class Passed:
    """One micro-batch after its forward pass; ``batch`` is on the device, and see :class:`students.head.Read`."""

    part: Part
    batch: Batch
    hidden: Tensor
    logits: Tensor
    said: Said | None
    losses: ChannelLosses
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    shown: Mapping[str, Tensor] = field(default_factory=dict)


class Training:
    """The state of one run of :func:`students.distil.distil`; the arguments are the same."""

    def __init__(
        self,
        recipe: Recipe,
        options: DistilOptions,
        given: Inputs | StreamInputs,
        seed: int,
        out: Path,
        device: Device,
        variant: Variant,
        trackers: Trackers | None = None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.recipe, self.options, self.out, self.variant, self.seed = recipe, options, out, variant, seed
        AcceleratorState._reset_state(reset_partial_state=True)  # it is global, and keeps the first device and precision
        self.ranks = ranks()
        engine = handlers(self.ranks)
        tracked = {} if trackers is None else trackers.arguments
        self.accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision=options.precision, kwargs_handlers=engine, **tracked
        )
        self.log = Log(trackers if self.ranks.first else None, self.accelerator, out / "dynamics.jsonl")
        self.parallel = Parallel(self.ranks, self.accelerator, options)
        where = self.accelerator.device
        self.adapter = models.load(given.base, str(where))
        self.learning = Learning(self.adapter, given.base, options, seed)
        self.wanted = frozenset().union(*(energies.needs(c) for c in recipe.energies)) & taps.NAMES
        name = recipe.weighting or "fixed"
        read = weightings.features(name, variant.weighting)
        self.feed, self.voice = inputs.opened(given, recipe, variant, options, seed, self.adapter, self.wanted, read, where)
        shared = inputs.common_vocabulary(self.adapter, self.voice)
        self.feed.shared = None if shared is None else (shared, self.adapter.tokens())
        teacher = self.voice.adapter if self.voice else None
        if teacher is not None:
            self.learning.watch(teacher)
        widths = self.voice.widths(self.wanted, self.adapter) if self.voice else {}
        # generators of their own, so that no loss or weighting moves anything else's random numbers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.losses = Losses(recipe, variant, widths, shared).to(where)
        self.features = Features(read, self.adapter, self.voice, self.feed)
        self.head = Head(self.adapter, self.losses, self.accelerator.autocast, self.features.names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.weighting = weightings.build(name, recipe.channels, self.features.width or None, **variant.weighting).to(where)
        for channel in recipe.energies:
            self.weighting.accept(channel, self.losses.energy(channel).zero_at_match, self.losses.energy(channel).bounds)
        if "gradient_norms" in self.weighting.needs and "projector" not in options.learn:
            raise UserError(f"weighting {name!r} compares gradients on the projector, which learn leaves out")
        self.parallel.fits(self.weighting.needs, self.wanted)
        self._optimisers()
        self.load = Load()
        self.recorder = Recorder(out, recipe.channels, self.feed, options.betas_every)
        self.counts: Counter[str] = Counter()
        self.replaced: tuple[str, ...] = ()
        self.adapter.model.train()

    @cached_property
    def key(self) -> str:
        """What a resume point must have been written by."""
        return resume.key(self)

    @property
    def steps(self) -> int:
        """How many optimiser steps the training takes."""
        return self.feed.steps

    def join(self) -> None:
        """Put the student in the engine's hands, where there are several ranks; they do so together, before the first step."""
        self.parallel.prepare(self.adapter, self.optimiser)

    def _optimisers(self) -> None:
        """Make the student's optimiser, the energies' AdamW under the same schedule, and the weighting's at a constant rate."""
        options = self.options
        self.optimiser = Optimiser.of(options, self.adapter, self.steps)
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

    def close(self) -> None:
        """Let go of what reads ahead, and of trackers."""
        self.feed.close()
        self.log.close()

    def micro(self, members: Members) -> list[Members]:
        """Cut a step's rows into micro-batches, of which this rank takes its share."""
        return [shared[self.ranks.rank] for shared in self.parallel.cut(members, self.options.micro_rows)]

    def asks(self, number: int) -> bool:
        """Say whether step ``number`` uses what the teacher says about its tokens."""
        return bool(self.recipe.energies or self.features.names or number in (1, self.steps))

    def step(self, number: int, members: Members) -> None:
        """Take one optimiser step on rows of sample numbers; nothing is read back from the device."""
        started = time.perf_counter()
        self.load.step = number
        needs = self.weighting.needs
        if number == 1 and "losses" in needs:
            self.weighting.on_optimiser_step(0, self._evaluate(members))
        micro = self.parallel.cut(members, self.options.micro_rows)
        total = sum(map(len, members))
        lr = self.optimiser.lr
        parts, outs, losses = [], [], []
        gradients = GradientNorms(self.recipe.channels, self.adapter) if "gradient_norms" in needs else None
        for place, shared in enumerate(micro, start=1):
            sizes = [sum(map(len, rows)) for rows in shared]
            with self.parallel.accumulating(last=place == len(micro)):
                with self.parallel.together():
                    part = self._forward(number, shared[self.ranks.rank])
                    features = self.features(_seen(part))
                found, features = self.parallel.all(part.losses, features, sizes)
                out = self.weighting(found.by_channel, features=features, mask=found.mask)
                if gradients is not None:
                    gradients.add(part.losses, total)
                part = self._detached(number, part, len(micro))  # before the backward pass, which needs the room
                self.accelerator.backward(out.total * (sum(sizes) / total))
            parts.append(part)
            losses.append(found.detached())
            outs.append(out)
        shown = any(part.part.counts["images"] for part in parts)
        self.parallel.complete(self.losses, self.adapter, shown)
        norm = self.parallel.clip(self.optimiser, self.options.clip)
        if gradients is not None:
            self.parallel.add(gradients.sums.values())
            self.weighting.after_backward(gradients.norms())
        self.optimiser.step()
        if self.weighting_optimiser is not None:
            self.weighting_optimiser.step()
            self.weighting_optimiser.zero_grad(set_to_none=True)
        if "losses" in needs:
            self.weighting.on_optimiser_step(number, _joined(losses))
        if "second_forward" in needs:
            self.weighting.after_step(self._evaluate(members))
        self.parallel.advance(self.losses)
        self.losses.on_optimiser_step(number, self.steps)  # last, so that before and after are the same losses
        self._record(number, parts, losses, outs, norm, lr, started)

    def _forward(self, number: int, rows: Members) -> Passed:
        """Run the student on rows, and compare it with the teacher."""
        with self.parallel.reading():
            part = self.feed.part(rows)
        self.parallel.alike(bool(part.counts["images"]))
        self.load.rows, self.load.longest = len(rows), part.longest
        batch = part.batch.to(self.accelerator.device)
        if self.parallel.sharded:  # the head's weights are whole inside the engine's pass alone
            hidden, logits, mine = self.parallel.run(self._student, batch, self.adapter.head)
            said = self._hear(number, part, batch, mine)
            read = self.head.of_logits(logits, batch, said)
        else:
            hidden, said, read = self.parallel.run(self._compare, number, part, batch)
        return Passed(part, batch, hidden, read.logits, said, read.losses, read.scalars, read.shown)

    def _student(self, batch: Batch, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Hidden states [R, L, H], what ``head`` makes of those at the supervised tokens, and taps, of rows on the device."""
        with self.accelerator.autocast():
            hidden, mine = self.adapter.observe(batch, self.wanted)
            return hidden, head(self.adapter.supervised(hidden, batch)), mine

    def _compare(self, number: int, part: Part, batch: Batch) -> tuple[Tensor, Said | None, Read]:
        """Hidden states [R, L, H], what the teacher says, and the losses, of rows on the device."""
        hidden, states, mine = self._student(batch, lambda states: states)
        said = self._hear(number, part, batch, mine)
        return hidden, said, self.head(states, batch, said, number in (1, self.steps))

    def _hear(self, number: int, part: Part, batch: Batch, mine: Mapping[str, Tensor]) -> Said | None:
        """Ask the teacher, where the step uses what it says."""
        if self.voice is None or not self.asks(number):
            return None
        return self.voice.hear(part, batch, mine, number > 0 and self.recorder.keeps(number), self.features.states)

    @torch.no_grad()
    def _evaluate(self, members: Members) -> dict[str, Tensor]:
        """Losses {channel: [samples that have it]} of a step's rows as the student stands, without touching any state."""
        self.losses.eval()
        self.adapter.model.eval()
        found = []
        for shared in self.parallel.cut(members, self.options.micro_rows):
            with self.parallel.together():
                own = self._forward(0, shared[self.ranks.rank]).losses
            found.append(self.parallel.all(own, None, [sum(map(len, rows)) for rows in shared])[0])
        self.parallel.settle()
        self.adapter.model.train()
        self.losses.train()
        return _joined(found)

    def _detached(self, number: int, passed: Passed, parts: int) -> Passed:
        """Let go of the graph, of hidden states and taps, and of logits that nobody will look at."""
        losses, logits, said = passed.losses.detached(), passed.logits.detach(), passed.said
        small = logits.numel() * parts * self.options.flush_every <= EVIDENCE_LIMIT
        # the first and the last step's logits become histograms; of chunks there are none to keep
        keep = (small or number in (1, self.steps)) and len(logits) == len(passed.batch.labels)
        if said is not None:
            teacher = said.logits[:] if keep else said.logits[:0]
            said = replace(said, logits=teacher, prompt=None, vision=None, seen=None, taps=None)
        return replace(
            passed, hidden=passed.hidden[:0].detach(), logits=logits if keep else logits[:0], said=said, losses=losses
        )

    def _record(
        self,
        number: int,
        parts: list[Passed],
        losses: list[ChannelLosses],
        outs: list[Weighted],
        norm: Tensor,
        lr: float,
        started: float,
    ) -> None:
        """Hand one step to the recorder, its micro-batches joined; losses and weights are those of all ranks."""
        channels = self.recipe.channels
        sizes = torch.tensor([len(found.presence()[channels[0]]) for found in losses], dtype=torch.float32)
        shares = (sizes / sizes.sum()).to(norm.device)
        kept = spoken(parts)
        for when, at in (("early", 1), ("late", self.steps)):
            if number == at:
                spread = gathering.logits(self.ranks, shown(parts, kept), [len(p.batch.labels) for p in parts], SNAPSHOT_LIMIT)
                self.recorder.snapshot(when, number, **spread)
        evidence = {"labels": torch.cat([p.batch.labels for p in parts])}
        evidence |= {f"{owner}_logits": values for owner, values in kept.items()}
        self.recorder.add(
            Step(
                step=number,
                indices=tuple(k for p in parts for k in p.batch.indices),
                ids=tuple(i for p in parts for i in p.part.ids),
                noisy=tuple(n for p in parts for n in p.part.noisy),
                losses=_table([found.by_channel for found in losses], channels),
                weights=_table([out.weights for out in outs], channels),
                present=_table([found.presence() for found in losses], channels),
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
                teacher=self._heard(parts),
                sizes=tuple(len(p.batch.indices) for p in parts),
                counts=tuple(p.part.counts for p in parts),
                replaced=tuple(p.part.replaced for p in parts),
            )
        )  # fmt: skip

    def _heard(self, parts: list[Passed]) -> Tensor | None:
        """Return the teacher's [2, B] entropy and correctness, where it said something of every micro-batch."""
        columns = []
        for p in parts:
            if p.said is not None:
                known: tuple[Tensor, Tensor | None] | None = (p.said.entropy, p.said.correct)
            else:
                known = self.voice.facts(p.part) if self.voice is not None else None
            if known is None:
                return None
            entropy, correct = known
            # unknown only at steps whose betas are not recorded, where nobody reads it
            right = torch.zeros_like(entropy) if correct is None else correct.float()
            columns.append(torch.stack([entropy.float(), right]))
        return torch.cat(columns, 1)

    def flush(self) -> None:
        """Write the steps since the last call, and check them; see :meth:`students.dynamics.Recorder.flush`.

        Raises:
            FloatingPointError: on every rank, for a step that was not finite.
        """
        own = self.recorder.pending
        gathering.complete(self.ranks, self.recorder)
        for step in self.recorder.pending:
            for counts, replaced in zip(step.counts, step.replaced, strict=True):
                self.counts.update(counts)
                self.replaced = (*self.replaced, *replaced)[:NAMED]
        try:
            with self.ranks.together():
                self.recorder.flush()
                self.log.flush()
        except FloatingPointError:
            gathering.evidence(self.ranks, self.recorder, own)
            raise

    def save(self) -> None:
        """Write the checkpoint, what learned beside it, and the records; everything in them was checked to be finite."""
        self.adapter.model.eval()
        learning = self.parallel.saved(self.learning, self.seed)
        logs = self.parallel.total(self.losses.logs)
        with self.ranks.together():
            if self.ranks.first:
                self._save(learning, logs)

    def _save(self, learning: Learning, logs: Mapping[str, Tensor]) -> None:
        remove(self.out / "student")  # an earlier attempt may have been stopped while it wrote this
        broken = [name for name, p in learning.adapter.trainable() if not bool(p.isfinite().all())]
        if broken:
            raise FloatingPointError(f"after step {self.steps} weights are not finite: {', '.join(broken[:3])}")
        record = learning.save(self.out)
        facts = {
            "options": self.variant.weighting,
            "d": getattr(self.weighting, "d", None),
            "feature_dim": self.weighting.feature_dim,
            "needs": sorted(self.weighting.needs),
            "lr": self.weighting_lr,
            "betas": self.recorder.final,
            "logs": {name: int(count) for name, count in logs.items()},
        }
        checkpoint.save_weighting(self.weighting, self.recipe.weighting or "fixed", facts, self.out)
        checkpoint.save_energies(self.losses, self.out)
        self.recorder.finish()
        totals = {"steps": self.steps, **self.feed.totals(self.counts), "replaced": list(self.replaced)}
        write_json(self.out / "training.json", totals | record)


def _seen(part: Passed) -> Seen:
    return Seen(part.batch, part.hidden.detach(), part.logits.detach(), part.said, part.scalars)


def _joined(parts: Sequence[ChannelLosses]) -> dict[str, Tensor]:
    """Return the losses of a step's micro-batches as one: {channel: [samples that have it]}."""
    present = [part.present() for part in parts]
    return {channel: torch.cat([p[channel] for p in present]) for channel in present[0]}


def _table(parts: Sequence[Mapping[str, Tensor]], channels: Sequence[str]) -> Tensor:
    """Return [K, B] float32 from {channel: [micro-batch]} of each micro-batch."""
    return torch.stack([torch.cat([part[c].detach() for part in parts]) for c in channels]).float()
