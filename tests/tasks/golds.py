"""Small made-up gold files of the six benchmarks in their published formats, with replies; written to a folder."""

from __future__ import annotations

import json
from pathlib import Path

SPLITS = ("adversarial", "popular", "random")


def _lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(folder: Path) -> dict[str, Path]:
    """Write one gold per benchmark below ``folder`` and return where each is."""
    turns = [
        {"id": "4", "image": "4/image.png", "conversations": [{"value": "<image>\nWhich?\nA. a\nB. b"}, {"value": "B"}]},
        {"id": "5", "conversations": [{"value": "Which?\nA. a\nB. b\nC. c"}, {"value": "A"}]},
    ]
    (folder / "sqa.json").write_text(json.dumps(turns))
    entry = {"question": "What is it?", "imageId": "n1", "types": {"structural": "query"}}
    (folder / "gqa.json").write_text(json.dumps({"1": {**entry, "answer": "couch"}, "2": {**entry, "answer": "dog"}}))
    row = {"image_id": "a", "question": "what is it?", "ocr_tokens": ["STOP"]}
    people = [{**row, "question_id": n, "answers": ["stop"] * (10 - n) + ["go"] * n} for n in (0, 4)]
    (folder / "textvqa.json").write_text(json.dumps({"data": people}))
    asked = [("yes", "Is there a dog in the image?"), ("no", "Is there a cat in the image?")]
    for split in SPLITS:
        labels = [
            {"question_id": n, "image": "1.jpg", "text": text, "label": label} for n, (label, text) in enumerate(asked, 1)
        ]
        _lines(folder / "pope" / f"coco_pope_{split}.json", labels)
    options = {"question": "Which?", "hint": None, "A": "banana", "B": "apple", "C": "nan", "D": None, "category": "ocr"}
    mmbench = [
        {**options, "index": 7, "answer": "A"},
        {**options, "A": "apple", "B": "banana", "index": 1_000_007, "answer": "B"},
    ]
    _lines(folder / "mmbench.jsonl", mmbench)
    for category in ("count", "code_reasoning"):
        path = folder / "mme" / f"{category}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("1.jpg\tIs it here? Please answer yes or no.\tYes\n1.jpg\tIs it there? Please answer yes or no.\tNo\n")
    return {
        "scienceqa": folder / "sqa.json",
        "gqa": folder / "gqa.json",
        "textvqa": folder / "textvqa.json",
        "pope": folder / "pope",
        "mmbench": folder / "mmbench.jsonl",
        "mme": folder / "mme",
    }
