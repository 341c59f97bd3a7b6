"""What of the training data a run did not learn from: rows left out of a corpus, and rows that were cut to fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.base import UserError, read_json
from harness.blueprint import Blueprint
from harness.cells import earlier_folder, student_folder
from harness.stages import corpus

TRAINING = "training.json"


def lines(root: Path, blueprint: Blueprint) -> list[str]:
    """Return a sentence for each finished corpus and student that lost rows or tokens; empty where nothing was lost."""
    said = []
    for name in blueprint.training.corpora:
        facts = _facts(root, name)
        lost = facts["source_rows"] - facts["rows"] if facts is not None else 0
        if facts is not None and lost:
            why = ", ".join(f"{remark['rows']:,}: {what}" for what, remark in facts["skipped"].items())
            said.append(f"corpus {name} lacks {lost:,} of its source's {facts['source_rows']:,} rows ({why})")
    for recipe, seed in blueprint.students:
        folders = {f"student {recipe} seed{seed}": student_folder(recipe, seed)}
        for stage in blueprint.preset.stages[:-1]:
            folders[f"student {recipe} seed{seed} {stage.name}"] = earlier_folder(recipe, seed, stage.name)
        for label, folder in folders.items():
            path = root / folder / TRAINING
            note = read_json(path).get("note") if path.is_file() else None
            said += [f"{label}: {note}"] if note else []
    return said


def refuse(root: Path, complete: Iterable[str], allowed: int) -> None:
    """Refuse a corpus that was indexed without more images than are allowed now: nobody should train on it unknowingly.

    Args:
        root: the run folder.
        complete: the corpora that would be taken as they are.
        allowed: images of a corpus that may be unreadable.

    Raises:
        UserError: naming the corpus, its images and both ways out.
    """
    for name in complete:
        facts = _facts(root, name)
        lost = [] if facts is None else facts["unreadable"]
        if len(lost) > allowed:
            folder = root / corpus.target(name)
            raise UserError(
                f"corpus {name!r} of this run was made without {len(lost)} image(s) that cannot be read (allowed: {allowed};"
                f" the first: {lost[0]['key']}). Go on without them with --skip-unreadable {len(lost)}, or repair them and"
                f" delete {folder}"
            )


def _facts(root: Path, name: str) -> dict[str, Any] | None:
    path = root / corpus.target(name) / "corpus.json"
    return read_json(path) if path.is_file() else None
