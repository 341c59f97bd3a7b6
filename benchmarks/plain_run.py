"""The experiment of a preset as a careful person writes it with transformers and torch, one student after the other.

Nothing is shared and nothing is cached: every student has its own teacher beside it, which looks at every row with its own
vision tower; all positions go through both heads; the losses are computed at every position and masked; replies come from
``generate`` one question at a time, and so do the log-probabilities of the gold answers. From the project come the data, which
samples a step takes (``students/data/pack.py``), the questions and the scoring, so that both sides train on the same samples
in the same order from the same start and answer the same questions.

A row is one question with its own image, padded on the right to the longest of the batch, as transformers' trainers and the
public tools do it (``"rows": "single"`` in the job); or the questions about one image share its tokens, as the project packs
them (``"rows": "packed"``), which is no common practice: the losses are the same.

``python benchmarks/plain_run.py JOB.json`` is what benchmarks/whole_run.py starts.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import tasks
from harness import base
from harness.config import Preset, load_preset, load_recipe, load_variant, model_path
from harness.stages import data
from plain_answers import Clock, Examiner, load
from students.data import pack
from students.data.samples import TrainingSet
from students.options import DistilOptions
from students.recipe import Recipe

ENERGIES = ("fkl", "cosine_probs")
WEIGHTINGS = (None, "fixed", "beta_task", "beta_instance")
ROWS = ("single", "packed")
_SEEDS = 0


def refuse(recipe: Recipe, preset: Preset) -> None:
    """Raise a UserError for what is not written here."""
    known = all(c in ENERGIES for c in recipe.energies) and recipe.weighting in WEIGHTINGS
    options = load_variant(recipe.variant) if recipe.variant else None
    if not known or (options is not None and (options.energies or set(options.weighting) - {"weights"})):
        raise base.UserError(
            f"no plain implementation of {recipe.name!r}; there are ce, {', '.join(ENERGIES)} with fixed (constant weights),"
            " task and instance. Choose others with --students"
        )
    if preset.training is None or preset.data.faults.blinds:
        raise base.UserError(f"preset {preset.name!r}: the plain pipeline trains on packed data that no teacher is blind to")


# ---- losses and weights ----------------------------------------------------------------------------------------------------


def energy(name: str, teacher: Tensor, student: Tensor) -> Tensor:
    """Logits [R, L, V] twice -> [R, L]."""
    if name == "fkl":
        log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    return 1 - F.cosine_similarity(teacher.softmax(-1), student.softmax(-1), dim=-1)


class Weights(torch.nn.Module):
    """What balances the channels: constants, one learned beta for each, or a gate on the sample's state."""

    def __init__(self, recipe: Recipe, width: int, constant: float) -> None:
        super().__init__()
        self.kind, self.constant = recipe.weighting or "fixed", constant
        self.channels = recipe.channels if recipe.weighting else recipe.channels[:1]
        learned, one = len(recipe.energies), math.log(math.expm1(1.0))
        if self.kind == "beta_task":
            self.raw = torch.nn.Parameter(torch.full((learned,), one))
        elif self.kind == "beta_instance":
            self.first, self.last = torch.nn.Linear(width, 128), torch.nn.Linear(128, learned)
            torch.nn.init.zeros_(self.last.weight)
            torch.nn.init.constant_(self.last.bias, one)

    def forward(self, losses: Mapping[str, Tensor], state: Tensor) -> Tensor:
        """{channel: [B]} and states [B, H] at the end of the prompt -> the scalar to minimise."""
        total = torch.zeros_like(next(iter(losses.values())))
        if self.kind == "fixed":
            for channel, loss in losses.items():
                total = total + (loss if channel == "ce" else self.constant * loss)
            return total.mean()
        if self.kind == "beta_task":
            raw = self.raw.expand(len(state), -1)
        else:
            raw = self.last(self.first(F.layer_norm(state.detach(), state.shape[-1:])).relu())
        beta, penalty = F.softplus(raw), torch.zeros_like(total)
        taught = [channel for channel in losses if channel != "ce"]
        for channel, loss in losses.items():
            total = total + (loss if channel == "ce" else beta[:, taught.index(channel)] * loss)
        for k in range(len(taught)):
            penalty = penalty - 0.5 * beta[:, k].log()
        return (total + penalty).mean()


# ---- training --------------------------------------------------------------------------------------------------------------


def optimisers(model: Any, options: DistilOptions) -> list[Any]:
    """Muon for the language model's hidden matrices and AdamW for the rest; the tower is frozen."""
    inner = model.model
    inner.vision_tower.requires_grad_(False)
    embedding = model.get_input_embeddings().weight
    hidden = [p for p in inner.language_model.parameters() if p.ndim == 2 and p is not embedding]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [
        torch.optim.AdamW(rest, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01),
        torch.optim.Muon(hidden, lr=options.muon_lr, weight_decay=0.05, momentum=0.95, ns_steps=3),
    ]


def share(done: int, steps: int, warmup: int) -> float:
    """The schedule: a linear warm-up times a cosine down to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done / max(1, steps))))
    return min(1.0, (done + 1) / max(1, warmup)) * (0.02 + 0.98 * cosine)


@dataclass(frozen=True)
class Step:
    """What one optimiser step trains on: R rows of L positions, B samples.

    Attributes:
        given: what both models take, by keyword.
        labels: int64 [R, L], the token to say next, or -100.
        owner: int64 [R, L], the sample (0 .. B-1) that a label belongs to.
        ends: int64 [B] twice, row and column of the last position of each sample's prompt.
    """

    given: dict[str, Tensor]
    labels: Tensor
    owner: Tensor
    ends: tuple[Tensor, Tensor]


def packed(encoded: pack.Encoded, members: Sequence[list[int]], images: Callable[[Sequence[str]], Tensor]) -> Step:
    """Rows of questions that share an image, whose pixels are made once a step."""
    shown = sorted({key for row in members if (key := encoded.images[row[0]]) is not None})
    batch = pack.collate(encoded, members, dict(zip(shown, images(shown), strict=True)) if shown else {})
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.row, batch.column] = batch.labels
    owner = torch.zeros_like(batch.input_ids)
    owner[batch.row, batch.column] = batch.sample
    names = ("input_ids", "pixel_values", "attention_mask", "position_ids")
    return Step({name: getattr(batch, name) for name in names}, labels, owner, (batch.prompt_row, batch.prompt_column))


def single(encoded: pack.Encoded, members: Sequence[list[int]], images: Callable[[Sequence[str]], Tensor]) -> Step:
    """A row per question: prompt with its image, then the reply; padded on the right, the prompt's labels masked."""
    indices = [index for row in members for index in row]
    said = [torch.from_numpy(np.concatenate([encoded.prompts[i], encoded.answers[i]])) for i in indices]
    starts = torch.tensor([len(encoded.prompts[i]) for i in indices])
    whole = torch.nn.utils.rnn.pad_sequence(said, batch_first=True, padding_value=encoded.pad)
    lengths, places = torch.tensor([len(ids) for ids in said])[:, None], torch.arange(whole.shape[1])
    targets = whole.masked_fill((places < starts[:, None]) | (places >= lengths), -100)
    given = {"input_ids": whole[:, :-1], "attention_mask": (places < lengths).long()[:, :-1]}
    shown = [key for i in indices if (key := encoded.images[i]) is not None]
    if shown:
        given["pixel_values"] = images(shown)
    owner = torch.arange(len(indices))[:, None].expand(-1, whole.shape[1] - 1)
    return Step(given, targets[:, 1:], owner, (torch.arange(len(indices)), starts - 1))


@dataclass
class Trainer:
    """One student's training."""

    preset: Preset
    recipe: Recipe
    samples: TrainingSet
    places: Mapping[str, Path]
    rows: str
    clock: Clock

    def run(self, out: Path) -> list[dict[str, Any]]:
        """Train, save the student at ``out``, and return a record of every step's losses."""
        options, clock = self.preset.training, self.clock
        assert options is not None and options.steps is not None  # refused before
        with clock.on("load"):
            model, processor = load(self.places["base"])
            self.teacher = load(self.places["teacher"])[0].requires_grad_(False) if self.recipe.energies else None
        with clock.on("tokenise"):
            encoded = pack.encode(self.samples.samples, processor)
            rows = pack.groups(encoded, options.turns, _SEEDS)
        variant = load_variant(self.recipe.variant).weighting if self.recipe.variant else {}
        torch.manual_seed(_SEEDS)
        weights = Weights(self.recipe, model.config.text_config.hidden_size, float(variant.get("weights", 1.0)))
        parts = optimisers(model, options)
        rates = [part.param_groups[0]["lr"] for part in parts]
        rate = options.weighting_lr * (10 if weights.kind == "beta_task" else 1)
        own = list(weights.parameters())
        balance = torch.optim.AdamW(own, lr=rate, betas=(0.9, 0.98), weight_decay=0.0) if own else None

        def images(keys: Sequence[str]) -> Tensor:
            made = processor.image_processor(images=[self.samples.images[key] for key in keys], return_tensors="pt")
            return torch.as_tensor(made["pixel_values"])

        model.train()
        records = []
        for done, members in enumerate(pack.schedule(rows, options.steps, options.rows, _SEEDS)):
            for part, peak in zip(parts, rates, strict=True):
                part.param_groups[0]["lr"] = peak * share(done, options.steps, options.warmup)
            with clock.on("batches and images"):
                step = (single if self.rows == "single" else packed)(encoded, members, images)
            losses, state = self._losses(model, step, len(processor.tokenizer))
            with clock.on("student backward"):
                total = weights(losses, state)
                total.backward()
            with clock.on("optimiser"):
                torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], options.clip)
                for part in (*parts, *([balance] if balance else [])):
                    part.step()
                    part.zero_grad(set_to_none=True)
            records.append({"total": total.item(), "loss": {c: v.mean().item() for c, v in losses.items()}})
        with clock.on("save"):
            model.save_pretrained(out)
            processor.save_pretrained(out)
        return records

    def _losses(self, model: Any, step: Step, width: int) -> tuple[dict[str, Tensor], Tensor]:
        """Per-sample losses {channel: [B]} and states at the end of the prompts [B, H]; everything at all positions."""
        with self.clock.on("student forward"):
            hidden = model.model(**step.given, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden)
        labels, owner, count = step.labels, step.owner, len(step.ends[0])
        mask, said = labels != -100, None
        if self.teacher is not None:
            with self.clock.on("teacher forward"), torch.no_grad():
                said = self.teacher(**step.given, use_cache=False).logits[..., :width]

        def mean(values: Tensor) -> Tensor:
            sums = torch.zeros(count).index_add(0, owner[mask], values[mask])
            return sums / torch.bincount(owner[mask], minlength=count)

        losses = {}
        with self.clock.on("losses"):
            for channel in self.recipe.channels:
                if channel == "ce":
                    values = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
                    losses[channel] = mean(values.view_as(labels))
                else:
                    assert said is not None
                    losses[channel] = mean(energy(channel, said, logits[..., :width]))
        return losses, hidden[step.ends]


# ---- the whole -------------------------------------------------------------------------------------------------------------


def main(job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Do everything and return losses, scores, replies, and seconds by what for and of each model."""
    if job["rows"] not in ROWS:
        raise base.unknown("rows", job["rows"], ROWS)
    preset = load_preset(job["preset"])
    recipes = [load_recipe(name) for name in job["students"]]
    for recipe in recipes:
        refuse(recipe, preset)
    clock = Clock({})
    places = {role: model_path(str(getattr(preset.models, role))) for role in ("teacher", "base")}
    with clock.on("read data"):
        samples = data.load_training(Path(job["run"]))
    with clock.on("read questions"):
        questions = {name: tasks.load(tasks.protocol(name), limit=preset.evaluation.limit) for name in preset.protocols}
        examiner = Examiner(questions, preset.evaluation.diagnostics, clock)
    scores, replies, losses, whole = {}, {}, {}, Clock({})
    for role in ("teacher", "base"):
        with whole.on(f"evaluate {role}"):
            scores[role], replies[role] = examiner.run(places[role], role == "teacher")
        say(f"{role} evaluated ({whole.seconds[f'evaluate {role}']:.1f} s)")
    for recipe in recipes:
        folder = Path(job["out"]) / recipe.name
        with whole.on(f"train {recipe.name}"):
            losses[recipe.name] = Trainer(preset, recipe, samples, places, job["rows"], clock).run(folder)
        with whole.on(f"evaluate {recipe.name}"):
            scores[recipe.name], replies[recipe.name] = examiner.run(folder, is_teacher=False)
        trained, asked = whole.seconds[f"train {recipe.name}"], whole.seconds[f"evaluate {recipe.name}"]
        say(f"{recipe.name} trained ({trained:.1f} s) and evaluated ({asked:.1f} s)")
    return {"scores": scores, "replies": replies, "losses": losses, "seconds": clock.seconds, "models": whole.seconds}


if __name__ == "__main__":
    base.offline()
    base.shim()
    logging.basicConfig(level=logging.INFO, format="plain: %(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    given = base.read_json(sys.argv[1])
    found = main(given, logging.getLogger("plain").info)
    base.write_json(Path(given["out"]) / "plain.json", found)
    assert np.isfinite([record["total"] for records in found["losses"].values() for record in records]).all()
