"""POPE as LLaVA evaluates it (haotian-liu/LLaVA ``llava/eval/eval_pope.py``); papers show the mean F1 of the three splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Doc = Mapping[str, Any]
_NO = {"No", "not", "no"}
_NAMED = {"yes", "no", "not"}


def prompt(doc: Doc) -> str:
    """The question and the request for a short answer (``llava_pope_test.jsonl``)."""
    return f"{doc['question']}\nAnswer the question using a single word or phrase."


def first_sentence(reply: str, doc: Doc) -> tuple[str, bool]:  # noqa: ARG001
    """``no`` where the first sentence holds the word No, not or no; everything else is ``yes``, as published.

    ``yes`` by default is marked as not named unless the reply says yes: an empty reply, or NO in capitals.
    """
    words = reply.strip().split(".")[0].replace(",", "").split(" ")
    said = "no" if _NO & set(words) else "yes"
    named = said == "no" or "yes" in {word.strip("\"'!?:;()\n").lower() for word in words}
    return said, named


def same(prediction: str, doc: Doc) -> float:
    """1 where the prediction is the label, else 0."""
    return float(prediction == doc["answer"])
