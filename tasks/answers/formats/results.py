"""MME's folder of tab-separated files, one per category: image, question, answer (and, in result files, a reply)."""

from __future__ import annotations

from typing import Any

from harness.base import UserError
from tasks.answers.files import Content

BENCHMARKS = ("mme",)
WHAT = "MME's folder of CATEGORY.txt files with the tab-separated fields image, question, answer"


def rows(benchmark: str, content: Content) -> list[dict[str, Any]] | None:  # noqa: ARG001
    """Return the categories' rows one after the other, by file name; further fields of a line are replies, not read here."""
    parts = {name: part for name, part in (content.parts or {content.path.stem: content}).items() if part.path.suffix == ".txt"}
    if not parts or any(part.lines is None for part in parts.values()):
        return None
    made = []
    for category, part in parts.items():
        for number, fields in part.lines or []:
            if len(fields) < 3:
                raise UserError(f"{part.path}, line {number}: expected image, question and answer, got {len(fields)} field(s)")
            image, question, answer = (field.rstrip("\r") for field in fields[:3])
            name = f"{category}/{image}"
            made.append({"question_id": name, "category": category, "question": question, "answer": answer.strip()})
    return made
