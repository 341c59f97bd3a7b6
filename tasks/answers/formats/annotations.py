"""TextVQA's annotation file ``TextVQA_0.5.1_val.json``: {"data": [{question_id, image_id, question, answers}, ...]}."""

from __future__ import annotations

from typing import Any

from tasks.answers.files import Content

BENCHMARKS = ("textvqa",)
WHAT = 'TextVQA\'s object {"data": [{question_id, answers, ...}]}'


def rows(benchmark: str, content: Content) -> list[dict[str, Any]] | None:  # noqa: ARG001
    """Return the rows as they are."""
    if content.value is None or not isinstance(content.value.get("data"), list):
        return None
    found: list[dict[str, Any]] = content.value["data"]
    return found
