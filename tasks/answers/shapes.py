"""A benchmark's row in official columns as a question: its id, cluster, group, answer and the keys that replies use."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.base import UserError, unknown
from tasks.protocols import mme
from tasks.questions import Question

Row = dict[str, Any]
Key = tuple[str, ...]
ROTATIONS = 1_000_000
_LETTERS = "ABCDE"


@dataclass(frozen=True)
class Shaped:
    """A question and how replies may name it, the unique name first; ``shows_image``: the row has an image."""

    question: Question
    keys: tuple[Key, ...]
    shows_image: bool


Shape = Callable[[Mapping[str, Any], int], Shaped]


def _absent(value: Any) -> bool:
    """Return whether a cell is missing: None, NaN, or the text that a table writes for one."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan", "none"))


def _first(row: Mapping[str, Any], *names: str) -> Any:
    """Return the first of these columns that is there, or None."""
    return next((row[name] for name in names if not _absent(row.get(name))), None)


def _bad(benchmark: str, number: int, what: str) -> UserError:
    return UserError(f"{benchmark}: gold row {number + 1}: {what}")


def _list(value: Any) -> list[str] | None:
    """Return a list cell; CSV and TSV hold it as text."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value) if "'" in value[:2] else json.loads(value)
        except (ValueError, SyntaxError):
            return None
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else None


def _yes_no(benchmark: str, value: Any, number: int) -> str:
    text = str(value).strip().lower()
    if text not in ("yes", "no"):
        raise _bad(benchmark, number, f"the answer is {value!r}, expected yes or no")
    return text


def _scienceqa(row: Mapping[str, Any], number: int) -> Shaped:
    choices = _list(row["choices"])
    if choices is None or not 2 <= len(choices) <= len(_LETTERS):
        raise _bad("scienceqa", number, f"the choices are {row['choices']!r}, expected 2 to {len(_LETTERS)}")
    given = str(row["answer"]).strip()
    answer = _LETTERS.find(given) if len(given) == 1 and given in _LETTERS else int(given) if given.isdigit() else -1
    if not 0 <= answer < len(choices):
        raise _bad("scienceqa", number, f"the answer is {row['answer']!r}, expected a choice's number from 0 or its letter")
    found = _first(row, "pid", "question_id", "id")
    name = str(number) if found is None else str(found)
    hint = "" if _absent(row.get("hint")) else str(row["hint"])
    doc = {**row, "choices": choices, "answer": answer, "hint": hint}
    group = _first(row, "subject")
    question = Question(name, doc, None, _LETTERS[answer], name, "" if group is None else str(group))
    return Shaped(question, ((name,),), not _absent(row.get("image")))


def _gqa(row: Mapping[str, Any], number: int) -> Shaped:
    found = _first(row, "question_id", "questionId", "id")
    name = str(number) if found is None else str(found)
    picture = _first(row, "imageId", "image")
    types = row.get("types")
    group = types.get("structural") if isinstance(types, Mapping) else None
    cluster = name if picture is None else str(picture)
    question = Question(name, dict(row), None, str(row["answer"]), cluster, "" if group is None else str(group))
    return Shaped(question, ((name,),), True)


def _textvqa(row: Mapping[str, Any], number: int) -> Shaped:
    answers = _list(row["answers"])
    if answers is None or len(answers) != 10:
        raise _bad("textvqa", number, f"expected ten answers, got {0 if answers is None else len(answers)}")
    name = str(row["question_id"])
    doc: Row = {**row, "answers": answers}
    if "ocr_tokens" in row:
        doc["ocr_tokens"] = _list(row["ocr_tokens"])
    picture = _first(row, "image_id", "image")
    likely = max(answers, key=lambda answer: (answers.count(answer), -answers.index(answer)))
    question = Question(name, doc, None, likely, name if picture is None else str(picture), "")
    asked = str(row.get("question", "")).strip().lower()
    other = () if picture is None or not asked else ((str(picture), asked),)
    return Shaped(question, ((name,), *other), True)


def _pope(row: Mapping[str, Any], number: int) -> Shaped:
    answer = _yes_no("pope", row["answer"], number)
    category = str(row["category"])
    found = _first(row, "question_id")
    within = str(number) if found is None else str(found)
    picture = _first(row, "image_source", "image")
    name = f"{category}/{within}"
    cluster = name if not isinstance(picture, str) else picture.rsplit(".", 1)[0]
    doc = {**row, "question_id": within, "category": category, "answer": answer}
    through = _first(row, "llava_id")
    other = () if through is None else ((category, str(through)), (str(through),))
    return Shaped(Question(name, doc, None, answer, cluster, category), ((category, within), *other), True)


def _mmbench(row: Mapping[str, Any], number: int) -> Shaped:
    answer = str(row["answer"]).strip()
    if answer not in "ABCD" or len(answer) != 1:
        raise _bad("mmbench", number, f"the answer is {row['answer']!r}, expected A, B, C or D")
    found = _first(row, "category", "l2-category")
    group = "" if found is None else str(found)
    if "record" in row:
        name = str(row["record"])
        return Shaped(Question(name, {**row, "answer": answer}, None, answer, name, group), ((name,),), True)
    try:
        index = int(float(row["index"]))
    except (TypeError, ValueError) as error:
        raise _bad("mmbench", number, f"the index is {row['index']!r}, expected a whole number") from error
    doc: Row = {**row, "index": index, "answer": answer}
    for name in ("hint", "A", "B", "C", "D"):
        doc[name] = None if _absent(row.get(name)) else str(row[name])
    if doc[answer] is None and any(doc[letter] is not None for letter in "ABCD"):
        raise _bad("mmbench", number, f"the answer is {answer}, an option that is not there")
    for name in ("category", "l2-category", "L2-category", "source", "split"):
        doc.setdefault(name, None)  # published golds without these columns score all the same
    doc["L2-category"] = _first(doc, "L2-category", "l2-category")
    question = Question(str(index), doc, None, answer, str(index % ROTATIONS), group)
    return Shaped(question, ((str(index),),), True)


def mme_key(picture: str, asked: str) -> Key:
    """Return the key of an MME row: (category/image, question without its prompt suffix).

    Args:
        picture: ``category/image``; a folder between them (``artwork/images/1.jpg``) is dropped.
        asked: the question as any toolkit writes it, with or without what it appends.
    """
    parts = picture.split("/")
    text = asked.split("\n")[0].strip().removesuffix(mme.SUFFIX).strip()
    return f"{parts[0]}/{parts[-1]}", text


def _mme(row: Mapping[str, Any], number: int) -> Shaped:
    answer = _yes_no("mme", row["answer"], number)
    picture = str(row["question_id"])
    if "/" not in picture:
        raise _bad("mme", number, f"question_id is {picture!r}, expected category/image")
    category = str(row.get("category") or picture.split("/")[0])
    if category not in (*mme.PERCEPTION, *mme.COGNITION):
        raise _bad("mme", number, f"the category is {category!r}; known: {', '.join((*mme.PERCEPTION, *mme.COGNITION))}")
    key = mme_key(picture, str(row["question"]))
    doc = {**row, "question_id": key[0], "category": category, "answer": answer.capitalize()}
    return Shaped(Question("/".join(key), doc, None, answer, key[0], category), (key,), True)


_SHAPES: dict[str, Shape] = {
    "gqa": _gqa,
    "mmbench": _mmbench,
    "mme": _mme,
    "pope": _pope,
    "scienceqa": _scienceqa,
    "textvqa": _textvqa,
}


def shape(benchmark: str) -> Shape:
    """Return the shape of a benchmark's rows.

    Raises:
        UnknownName: for a benchmark without published gold files.
    """
    if benchmark not in _SHAPES:
        raise unknown("benchmark with gold files", benchmark, _SHAPES)
    return _SHAPES[benchmark]
