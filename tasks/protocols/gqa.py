"""GQA as LLaVA evaluates it: ``scripts/convert_gqa_for_eval.py``, then GQA's own ``eval.py`` (exact match)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Doc = Mapping[str, Any]


def prompt(doc: Doc) -> str:
    """The question and the request for a short answer (``llava_gqa_testdev_balanced.jsonl``)."""
    return f"{doc['question']}\nAnswer the question using a single word or phrase."


def plain(reply: str, doc: Doc) -> tuple[str, bool]:  # noqa: ARG001
    """The reply without full stops at its end, in lower case."""
    text = reply.strip().rstrip(".").lower()
    return text, text != ""


def same(prediction: str, doc: Doc) -> float:
    """1 where the prediction is the answer, letter by letter, else 0."""
    return float(prediction == doc["answer"])
