"""GQA's own question files: one JSON object, question id -> {question, answer, imageId, types, ...}."""

from __future__ import annotations

from typing import Any

from tasks.answers.files import Content

BENCHMARKS = ("gqa",)
WHAT = "GQA's object {question id: {question, answer, imageId, ...}}"


def rows(benchmark: str, content: Content) -> list[dict[str, Any]] | None:  # noqa: ARG001
    """Return one row per question, its id in the column ``id``."""
    if content.value is None or not content.value:
        return None
    entries = list(content.value.values())
    if not all(isinstance(entry, dict) and {"question", "imageId"} <= set(entry) for entry in entries):
        return None
    return [{**entry, "id": name} for name, entry in content.value.items()]
