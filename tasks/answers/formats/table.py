"""Rows in the official columns: JSON lines, a JSON list, CSV, TSV or parquet, as the hub and most toolkits hold them."""

from __future__ import annotations

from typing import Any

from harness.base import UserError
from tasks.answers.files import Content

BENCHMARKS = ("scienceqa", "gqa", "textvqa", "pope", "mmbench", "mme")
NEEDED = {
    "scienceqa": ("question", "choices", "answer"),
    "gqa": ("question", "answer"),
    "textvqa": ("question_id", "answers"),
    "pope": ("category", "answer"),
    "mmbench": ("index", "answer"),
    "mme": ("question_id", "question", "answer"),
}
WHAT = "rows (JSON lines, JSON, CSV, TSV, parquet) in the data set's own columns"
_ALIASES = {"text": "question", "label": "answer"}


def rows(benchmark: str, content: Content) -> list[dict[str, Any]] | None:
    """Return the rows; ``text`` is read as ``question`` and ``label`` as ``answer`` where those are absent.

    Raises:
        UserError: for questions of this benchmark without an answer, naming the column that is missing.
    """
    if not content.rows:
        return None
    named = [_renamed(row) for row in content.rows]
    if "ground_truth" in named[0]:
        return None
    missing = {name for row in named for name in NEEDED[benchmark] if name not in row}
    if missing and "question" not in named[0]:
        return None
    if missing:
        lacking = ", ".join(sorted(missing))
        raise UserError(f"{content.path}: rows without {lacking}: questions, but no gold answers to score by")
    return named


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{new: row[old] for old, new in _ALIASES.items() if old in row and new not in row}}
