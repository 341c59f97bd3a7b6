"""LLaVA's ``llava_test_CQM-A.json``: ScienceQA as conversations of a question and a letter."""

from __future__ import annotations

from typing import Any

from harness.base import UserError
from tasks.answers.files import Content

BENCHMARKS = ("scienceqa",)
WHAT = "LLaVA's list of {id, image, conversations}"
_LETTERS = "ABCDE"


def rows(benchmark: str, content: Content) -> list[dict[str, Any]] | None:  # noqa: ARG001
    """Return the rows; ``question`` holds the context as well, since the file does not tell where that ends."""
    if content.rows is None or not content.rows or "conversations" not in content.rows[0]:
        return None
    return [_row(row, f"{content.path}, entry {number}") for number, row in enumerate(content.rows)]


def _row(row: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        name, asked, answer = row["id"], row["conversations"][0]["value"], row["conversations"][1]["value"].strip()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: expected id and two conversations with a value each") from error
    lines = str(asked).replace("<image>", "").strip().split("\n")
    starts = [number for number, line in enumerate(lines) if line.startswith("A. ")]
    choices: list[str] = []
    for line in lines[starts[-1] :] if starts else []:  # an option may go on over several lines (closings of letters)
        letter = _LETTERS[len(choices) : len(choices) + 1]
        if letter and line.startswith(f"{letter}."):
            choices.append(line[2:].lstrip(" "))
        else:
            choices[-1] += f"\n{line}"
    if len(choices) < 2 or answer not in _LETTERS[: len(choices)]:
        raise UserError(f"{where}: expected options A. B. ... at the end and the letter of one, got {answer!r}")
    return {
        "pid": str(name),
        "question": "\n".join(lines[: starts[-1]]),
        "hint": "",
        "choices": choices,
        "answer": _LETTERS.index(answer),
        "image": row.get("image"),
    }
