"""``--export``: copy a finished student out of a run, with a model card that says what it is and what it scored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import store
from harness.base import UserError, read_json, remove, write_text

#: Families that transformers knows only after ``students.models.register()``.
_OWN = ("mobilevlm",)
_CARD = Path(__file__).parent / "templates" / "card.md.jinja"


def export_student(root: Path, recipe: str, seeds: Sequence[int], target: Path) -> Path:
    """Copy ``students/RECIPE/seedN/student`` to ``target``, N being the first of ``seeds`` that the run holds.

    Returns:
        The folder that was written; it appears complete or not at all.

    Raises:
        UserError: when ``root`` is no run, does not hold that student complete and undamaged, or ``target`` exists.
    """
    target = target.expanduser().resolve()
    if target.exists():
        raise UserError(f"--export: {target} exists already; name a new folder")
    store.read_preset(root)
    found = {seed: store.read_entry(root, f"student/{recipe}/seed{seed}") for seed in seeds}
    seed, entry = next(((s, e) for s, e in found.items() if e is not None), (None, None))
    if seed is None or entry is None or not store.is_complete(root, entry):
        stages = [e.stage for e in store.entries(root) if e.stage.startswith("student/")]
        names = [name.removeprefix("student/") for name in stages]
        trained = [name.replace("/", " ") for name in names if name.count("/") == 1]  # others are stages before the last
        raise UserError(
            f"--export: {root} holds no finished student {recipe!r} of seed {', '.join(map(str, seeds))};"
            f" it holds: {', '.join(trained) or 'none'}"
        )
    working = target.with_name(f".{target.name}.partial")
    remove(working)
    working.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(root / "students" / recipe / f"seed{seed}" / "student", working)
    write_text(working / "README.md", card(root, recipe, seed))
    working.rename(target)
    return target


def card(root: Path, recipe: str, seed: int) -> str:
    """Return the model card of one student as Markdown."""
    import jinja2

    import tasks

    manifest = read_json(root / store.MANIFEST)
    protocols = [tasks.protocol(name) for name in manifest["protocols"]]
    family = read_json(root / "students" / recipe / f"seed{seed}" / "student" / "config.json")["model_type"]
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(_CARD.read_text(encoding="utf-8")).render(
        recipe=recipe,
        seed=seed,
        manifest=manifest,
        preset=manifest["preset"],
        facts=facts(manifest),
        family=family,
        own=family in _OWN,
        scores=_scores(root, recipe, seed, protocols),
        miniature=not all(protocol.official for protocol in protocols),
    )


def facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a student was made of and how, for its card: rows of (what, value)."""
    weights, preset = manifest["weights"], manifest["preset"]
    found: list[tuple[str, str]] = []
    for role, what in (("teacher", "teacher weights"), ("base", "student base weights")):
        for name in (name for name in weights if name == role or name.startswith(f"{role}/")):
            part = name.partition("/")[2]
            found.append((f"{what} ({part})" if part else what, f"`{weights[name]}`"))
    if preset["training"] is not None:
        data, training = preset["data"], preset["training"]
        noise = " where the teacher sees" if data.get("complementary") else ""
        blind = f"all of {', '.join(data['blind_benchmarks'])}" if data.get("blind_benchmarks") else data["blindness"]
        found += [
            ("label noise in training", f"{data['label_noise']}{noise}"),
            ("images that the teacher did not see", str(blind)),
            ("steps", _length(training).removesuffix(" steps")),
        ]
    for stage in preset.get("stages", ()):
        training = stage["training"]
        format_ = f", format {training['template']}" if training.get("template") else ""
        found.append((f"stage {stage['name']}", f"{_length(training)} of the corpus {stage['corpus']}{format_}"))
    return found


def _length(training: Mapping[str, Any]) -> str:
    """Say how long a training was: its steps, or its epochs where those decide."""
    if training.get("epochs") is not None:
        return f"{training['epochs']:g} epoch(s)"
    return f"{training['steps']} steps"


def _scores(root: Path, recipe: str, seed: int, protocols: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Return one record per protocol that the student was evaluated on, with its 95 % interval."""
    import pandas as pd

    from reports.statistics import interval

    path = root / "scores.parquet"
    if not path.is_file():  # stopped before the scores were collected: the card says so
        return []
    frame = pd.read_parquet(path)
    own = frame[(frame["student"] == recipe) & (frame["seed"] == seed)]
    records: list[Mapping[str, Any]] = []
    for protocol in protocols:
        rows = own[own["protocol"] == protocol.name]
        if len(rows):
            found = interval(rows, protocol)
            known = found.low is not None and found.high is not None  # absent where every cluster scores the same
            text = f"{found.low:.1f} to {found.high:.1f}" if known else "none (no spread)"
            records.append({"protocol": protocol.name, "value": f"{found.value:.1f}", "interval": text, "n": found.n})
    return records
