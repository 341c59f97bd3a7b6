"""MME by its authors' ``calculation.py`` (BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation).

LLaVA, MobileVLM and Beta-KD ask with LLaVA's prompt (``llava_mme.jsonl``) and score with that script.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Doc = Mapping[str, Any]
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUFFIX = "Please answer yes or no."


def prompt(doc: Doc) -> str:
    """The question without MME's own request, and LLaVA's request for a short answer."""
    question = doc["question"].strip().removesuffix(SUFFIX).strip()
    return f"{question}\nAnswer the question using a single word or phrase."


def prefix(reply: str, doc: Doc) -> tuple[str, bool]:  # noqa: ARG001
    """``yes`` or ``no`` where it stands within the first four characters, in any case, yes first; else none.

    "not sure" is therefore read as ``no``, and "y" as nothing: as published.
    """
    start = reply.strip().lower()[:4]
    said = "yes" if "yes" in start else "no" if "no" in start else ""
    return said, said != ""


def same(prediction: str, doc: Doc) -> float:
    """1 where the prediction is the answer, else 0."""
    return float(prediction == doc["answer"].lower())


def perception(doc: Doc, image: bool) -> bool:  # noqa: ARG001
    """The ten categories of perception."""
    return doc["category"] in PERCEPTION


def cognition(doc: Doc, image: bool) -> bool:  # noqa: ARG001
    """The four categories of cognition."""
    return doc["category"] in COGNITION
