"""``--dry-run``: the whole plan in numbers. Models and data with their sizes, steps, memory, disk, hours, what is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from harness import estimates, needs, weights
from harness.base import UserError, read_json
from harness.blueprint import Blueprint
from harness.cells import earlier_folder, student_folder
from harness.config import load_recipe, load_variant, model_path
from harness.missing import Missing
from harness.real import Assemble, ModelSize, TrainingStage
from harness.stages import corpus
from harness.training_plan import corpus_places
from students.teacher_signal import declared

#: What a number is known from: files that are here, the size of such files, or what the preset declares.
Known = Literal["its files", "its file sizes", "the preset"]
_WORDS = 100.0


@dataclass(frozen=True)
class Sized:
    """A model's size, and how it is known."""

    size: ModelSize
    known: Known


def sizes(blueprint: Blueprint) -> dict[str, Sized]:
    """Return the sizes of the models as far as they are known, by role or name."""
    found: dict[str, Sized] = {}
    for role in ("teacher", "base", *blueprint.models.external):
        declared = blueprint.preset.declared.get(role)
        source = blueprint.sources.of(role)
        measured = _measured(source, declared) if isinstance(source, str) else None
        if measured is not None:
            found[role] = measured
        elif declared is not None:
            found[role] = Sized(declared, "the preset")
    return found


def _measured(source: str, declared: ModelSize | None) -> Sized | None:
    """Return what the files of a model say; None where it is not here, or does not say enough."""
    try:
        folder = model_path(source)
        held, shape = weights.read(folder), weights.shape(folder)
    except UserError:  # it is in the list of what is missing, with the reason
        return None
    if shape is None:
        return None
    size = ModelSize(
        parameters=held.parameters,
        tower=held.tower if held.exact or declared is None else declared.tower,
        hidden=shape.hidden,
        layers=shape.layers,
        intermediate=shape.intermediate,
        vocabulary=shape.vocabulary,
        vision_tokens=1 if declared is None else declared.vision_tokens,
        gib=held.size / 2**30,
    )
    return Sized(size, "its files" if held.exact else "its file sizes")


@dataclass(frozen=True)
class Training:
    """One stage of the training of every student, in numbers, for the student that needs most.

    Attributes:
        stage: as the preset has it.
        rows: of its corpus.
        rows_known: where from.
        words: mean words of a row's text.
        steps: of the optimiser.
        memory: bytes by purpose; None where a model's size is not known.
        all_activations: bytes of activations if every block kept its own (without gradient checkpointing).
    """

    stage: TrainingStage
    rows: int | None
    rows_known: Known
    words: float
    steps: int | None
    memory: Mapping[str, float] | None
    all_activations: float | None


def trainings(blueprint: Blueprint, root: Path, known: Mapping[str, Sized]) -> list[Training]:
    """Return the stages of the training; counts of an index that is there replace the preset's."""
    found = []
    channels = [load_recipe(name).energies for name, _ in blueprint.students]
    energies, signal = max(map(len, channels), default=0), blueprint.training.signal
    read = {energy: declared.declared(energy) for each in channels for energy in each}
    spans = any("vision_logits" in each.taps for each in read.values())
    whole = not all(each.by_tokens for each in read.values())
    for stage in blueprint.preset.stages:
        source = blueprint.preset.corpora[stage.corpus]
        index = root / corpus.target(stage.corpus) / "corpus.json"
        rows = int(read_json(index)["rows"]) if index.is_file() else source.rows
        words = source.words or _WORDS
        memory = plain = None
        # a student that hears the cached signal has no teacher beside it
        live = any(load_recipe(name).energies and not signal.hears(name, stage.training) for name, _ in blueprint.students)
        if "base" in known and (not live or "teacher" in known):
            teacher = known["teacher"].size if live else None
            memory = estimates.memory(stage.training, known["base"].size, teacher, words, energies, spans, whole)
            kept = stage.training.model_copy(update={"gradient_checkpointing": False})
            plain = estimates.memory(kept, known["base"].size, teacher, words, energies, spans, whole)["activations"]
        steps = stage.training.steps if rows is None else estimates.steps(stage.training, rows)
        found.append(Training(stage, rows, "its files" if index.is_file() else "the preset", words, steps, memory, plain))
    return found


def disk(blueprint: Blueprint, root: Path, known: Mapping[str, Sized]) -> dict[str, float]:
    """Return the bytes that the run folder will still take, by what for; downloads go to the hub's cache, not there."""
    parts = {"students": 0.0, "resume points": 0.0, "corpora": 0.0, "questions, replies, report": 5e8}
    preset = blueprint.preset
    *earlier, last = preset.stages or (None,)
    for name, seed in blueprint.students:
        if last is None or "base" not in known:
            continue
        size = known["base"].size
        for stage in earlier:
            if stage is not None and not (root / earlier_folder(name, seed, stage.name)).exists():
                parts["students"] += estimates.checkpoint_bytes(size)
        if not (root / student_folder(name, seed)).exists():
            parts["students"] += estimates.checkpoint_bytes(size)
            parts["resume points"] = max(estimates.resume_bytes(each.training, size) for each in preset.stages)
    if isinstance(blueprint.sources.of("base"), Assemble) and "base" in known:
        parts["assembled base"] = 4.0 * known["base"].size.parameters
    for name in blueprint.training.corpora:
        source = preset.corpora[name]
        if source.gib is not None and not (root / corpus.target(name)).exists():
            parts["corpora"] += 1.1 * source.gib * 2**30
    return parts


def show(console: Console, blueprint: Blueprint, root: Path, lost: Sequence[Missing], device: str, caches: float = 0.0) -> None:
    """Print everything about a plan but its stages.

    Args:
        console: where to.
        blueprint: the plan.
        root: the run folder.
        lost: what is missing.
        device: where it would run.
        caches: bytes that caches will still take, as far as that is known.
    """
    known = sizes(blueprint)
    found = needs.machine(root)
    _say(console, f"machine: {found.text}")
    _models(console, blueprint, known, {each.key for each in lost if each.kind == "model"})
    planned = trainings(blueprint, root, known)
    if planned:
        _corpora(console, blueprint, planned)
        _trainings(console, planned, len(blueprint.students))
    parts = {**disk(blueprint, root, known), "caches": caches}
    details = ", ".join(f"{name} {value / needs.GB:.1f}" for name, value in parts.items() if value)
    _say(console, f"disk: about {sum(parts.values()) / needs.GB:.1f} GB still to be written to {root} ({details}; GB)")
    _evaluations(console, blueprint, known)
    if planned:
        _hours(console, blueprint, root, planned, any(each.kind == "model" for each in lost), device)
    required = blueprint.preset.requires
    if required.gpu:
        _say(console, "required: a GPU" + ("" if required.gpu_gb is None else f" with {required.gpu_gb:.0f} GB of free memory"))
    if lost:
        _say(console, f"MISSING: {len(lost)}")
        for number, one in enumerate(lost, start=1):
            _say(console, f"  {number}. {one.text}")
    elif planned:
        _say(console, "nothing is missing")


def _hours(console: Console, blueprint: Blueprint, root: Path, planned: Sequence[Training], lost: bool, device: str) -> None:
    """Print how long the training takes, by a short probe where a GPU is; or why nothing is said."""
    if device != "cuda":
        _say(console, "hours: none are given, because there is no GPU here to time a few steps on")
        return
    if lost or (isinstance(blueprint.sources.of("base"), Assemble) and not (root / blueprint.sources.place("base")).is_dir()):
        _say(console, "hours: none are given before the models that a few steps could be timed with are here")
        return
    from harness import probe

    base, teacher = root / blueprint.sources.place("base"), root / blueprint.sources.place("teacher")
    named = [load_recipe(name) for name in dict.fromkeys(name for name, _ in blueprint.students)]
    scratch = next(place for place in (root, *root.parents) if place.is_dir())
    total, plan = 0.0, blueprint.training.signal
    for each in planned:
        options = each.stage.training
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".probe-") as name:
            said = Path(name) / "signal"
            # who reads vision tokens too is timed with the teacher beside it: those of made-up rows are not kept
            told = {r.name for r in named if plan.hears(r.name, options) and not plan.reads_tokens(r.name, options)}
            if told:
                a_row = probe.signal(options, teacher, each.words, "cuda", said)
                if each.rows is not None:
                    once = a_row * each.rows / 3600
                    total += once
                    _say(console, f"hours: teacher signal {each.stage.name} {once:.1f} h, once for all students")
            for recipe in named:
                variant = load_variant(recipe.variant) if recipe.variant else None
                taught, heard = teacher if recipe.energies else None, said if recipe.name in told else None
                timing = probe.probe(recipe, variant, options, base, taught, each.words, "cuda", scratch, heard)
                if each.steps is None:
                    continue
                seeds = sum(name == recipe.name for name, _ in blueprint.students)
                hours = probe.hours(timing, options, each.steps)
                total += hours * seeds
                memory = "" if timing.peak is None else f", peak {timing.peak / needs.GB:.1f} GB"
                _say(console, f"hours: {recipe.name} {each.stage.name} {hours:.1f} h a seed, timed on made-up rows{memory}")
    _say(console, f"hours: {total:.1f} for all training, evaluation not included")


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _models(console: Console, blueprint: Blueprint, known: Mapping[str, Sized], lost: set[str]) -> None:
    table = _table("Models", "role", "parameters", "tower", "size GB", "known from", "source", "here")
    for role in ("teacher", "base", *blueprint.models.external):
        source = blueprint.sources.of(role)
        if source is None:
            continue
        size = known.get(role)
        numbers = ("?", "?", "?", "-")
        if size is not None:
            each = size.size
            numbers = (
                f"{each.parameters / 1e9:.2f} B",
                f"{each.tower / 1e9:.2f} B",
                f"{each.gib * 2**30 / needs.GB:.1f}",
                size.known,
            )
        if isinstance(source, str):
            table.add_row(role, *numbers, source, "missing" if source in lost else "yes")
        elif isinstance(source, Assemble):
            table.add_row(role, *numbers, "assembled from:", "made here")
            for part, place in source.assemble.sources.items():
                table.add_row(f"  {part}", "", "", "", "", place, "missing" if place in lost else "yes")
        else:
            table.add_row(role, *numbers, "trained here", "made here")
    console.print(table)


def _corpora(console: Console, blueprint: Blueprint, planned: Sequence[Training]) -> None:
    table = _table("Training data", "corpus", "format", "rows", "known from", "rows' file GB", "file and images")
    for name in blueprint.training.corpora:
        each = next(training for training in planned if training.stage.corpus == name)
        source = blueprint.preset.corpora[name]
        rows = "?" if each.rows is None else f"{each.rows:,}"
        places = f"{source.file}, {source.images}/" if source.file is not None else source.source or "this package"
        size = None if source.gib is None else source.gib * 2**30
        if source.file is not None and blueprint.data_root is not None:
            found = corpus_places(source, blueprint.data_root)
            places = ", ".join(found.values())
            size = Path(found["file"]).stat().st_size if Path(found["file"]).is_file() else size
        table.add_row(
            name, source.format, rows, "its index" if each.rows_known == "its files" else each.rows_known,
            "?" if size is None else f"{size / needs.GB:.2f}", places,
        )  # fmt: skip
    console.print(table)


def _trainings(console: Console, planned: Sequence[Training], students: int) -> None:
    table = _table(
        f"Training, each of {students} student(s)", "stage", "corpus", "steps", "rows a step", "rows a pass", "tokens a row",
        "learning rate", "GPU memory GB",
    )  # fmt: skip
    for each in planned:
        options = each.stage.training
        memory = "?" if each.memory is None else f"{estimates.total(each.memory) / needs.GB:.0f}"
        table.add_row(
            each.stage.name, each.stage.corpus, "?" if each.steps is None else f"{each.steps:,}", str(options.rows),
            str(options.micro_rows or options.rows), f"<= {options.max_length}" if options.max_length else "whole",
            f"{options.lr:g}", memory,
        )  # fmt: skip
    console.print(table)
    for each in planned:
        if each.memory is not None:
            parts = ", ".join(f"{name} {value / needs.GB:.1f}" for name, value in each.memory.items() if value)
            _say(console, f"GPU memory of {each.stage.name}, estimated (harness/estimates.py), GB: {parts}")
            if each.stage.training.gradient_checkpointing and each.all_activations is not None:
                _say(
                    console,
                    f"  without gradient checkpointing, activations would take {each.all_activations / needs.GB:.1f} GB",
                )


def _evaluations(console: Console, blueprint: Blueprint, known: Mapping[str, Sized]) -> None:
    evaluation = blueprint.preset.evaluation
    for role in ("teacher", "base"):
        if role in known and blueprint.preset.requires.gpu:
            need = estimates.evaluation_memory(known[role].size, evaluation.dtype, evaluation.batch_size)
            _say(console, f"GPU memory of evaluating the {role}, estimated: {need / needs.GB:.0f} GB")
