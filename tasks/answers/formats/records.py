"""Records that hold question, gold and reply together and no id: {group, prompt, ground_truth, prediction}."""

from __future__ import annotations

from typing import Any

from tasks.answers.files import Content

BENCHMARKS = ("mmbench", "pope")
WHAT = "records {group, prompt, ground_truth}, named by their position"
REPLIES_WITHOUT_IDS = True
_NEEDED = {"group", "prompt", "ground_truth"}


def rows(benchmark: str, content: Content) -> list[dict[str, Any]] | None:
    """Return one row per record, named by its position (0, 1, ...).

    The question is the prompt's first line. Options are not read: prompts are often cut. Rows of MMBench carry no index,
    so none is a rotation of another.
    """
    if not content.rows or any(not set(row) >= _NEEDED for row in content.rows):
        return None
    made = []
    for number, row in enumerate(content.rows):
        facts = {"question": str(row["prompt"]).split("\n")[0], "answer": row["ground_truth"], "category": row["group"]}
        made.append({**facts, ("question_id" if benchmark == "pope" else "record"): str(number)})
    return made
