"""POPE's folder of label files ``coco_pope_SPLIT.json``: JSON lines {question_id, image, text, label}."""

from __future__ import annotations

from typing import Any

from tasks.answers.files import Content

BENCHMARKS = ("pope",)
WHAT = "a folder of coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json, or one of them"
PREFIX = "coco_pope_"
#: LLaVA numbers its 8,910 questions through: each split's own numbers after these. They mean nothing for other labels.
LLAVA = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
LLAVA_ROWS = {"adversarial": 3000, "random": 2910, "popular": 3000}


def rows(benchmark: str, content: Content) -> list[dict[str, Any]] | None:  # noqa: ARG001
    """Return the splits' rows one after the other, by file name; the split is the column ``category``."""
    parts = content.parts or {content.path.stem: content}
    found = {name.removeprefix(PREFIX): part.rows for name, part in parts.items() if name.startswith(PREFIX)}
    if not found or any(rows is None for rows in found.values()):
        return None
    numbered = {split: len(labels or []) for split, labels in found.items()} == LLAVA_ROWS
    made = []
    for split, labels in found.items():
        for row in labels or []:
            if not {"question_id", "label"} <= set(row):
                return None
            kept = {key: value for key, value in row.items() if key not in ("text", "label")}
            if numbered:
                kept["llava_id"] = LLAVA[split] + int(row["question_id"])
            made.append({**kept, "question": row.get("text"), "answer": row["label"], "category": split})
    return made
