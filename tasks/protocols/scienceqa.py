"""ScienceQA as LLaVA evaluates it (haotian-liu/LLaVA ``llava/eval/eval_science_qa.py``, ``model_vqa_science.py``).

MobileVLM and Beta-KD run the same scripts (``scripts/benchmark/sqa.sh``): all 4,241 test questions are asked, and the
tables show the accuracy of the 2,017 with an image ("SQA-I", "IMG").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Doc = Mapping[str, Any]
_LETTERS = "ABCDE"
_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the last dot is any character, as published


def prompt(doc: Doc) -> str:
    """Context, question, options, and the request for a letter, one below the other."""
    context = [f"Context: {doc['hint']}"] if doc["hint"] else []
    options = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, doc["choices"], strict=False)]
    return "\n".join([*context, doc["question"], *options, "Answer with the option's letter from the given choices directly."])


def letter(reply: str, doc: Doc) -> tuple[str, bool]:
    """A letter alone, a letter with ``. `` and more behind it, or exactly one ``The answer is X`` plus a character.

    A letter beyond the question's options is no answer, and ``A.`` alone is none either: both as published.
    """
    text = reply.strip()  # generation strips before the answer is written
    if len(text) == 1 and text in _LETTERS:
        found = text
    elif text[1:3] == ". " and text[0] in _LETTERS:
        found = text[0]
    else:
        said = _SENTENCE.findall(text)
        found = said[0] if len(said) == 1 else ""
    valid = found != "" and found in _LETTERS[: len(doc["choices"])]
    return (found, True) if valid else ("", False)


def right(prediction: str, doc: Doc) -> float:
    """1 for the letter of the answer, else 0."""
    return float(prediction == _LETTERS[doc["answer"]])


def with_image(doc: Doc, image: bool) -> bool:  # noqa: ARG001
    """Only questions with an image count."""
    return image
