"""What the fields of a reply file are called, and how a row says which question it answers.

A file uses one name for each throughout, the first of these that it has:

* id: ``id``, ``question_id``, ``questionId`` (GQA), ``pid`` (ScienceQA), ``index`` (MMBench)
* reply: ``reply``, ``prediction``, ``text`` (LLaVA), ``answer``

POPE's splits share their ids, so its rows also name their ``category``; MME's rows are keyed by image and ``question``. What a
row says of its question besides (``question``, ``prompt``, ``input``; a gold answer) is compared with the gold, because the ids
of two releases of a benchmark may mean different questions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.base import UserError
from tasks.answers.shapes import mme_key
from tasks.protocols.mme import SUFFIX
from tasks.questions import Question

IDS = ("id", "question_id", "questionId", "pid", "index")
REPLIES = ("reply", "prediction", "text", "answer")
#: Fields that may hold the question, and the gold answer as the toolkit knew it.
QUESTIONS = ("question", "input", "prompt")
GOLDS = ("gold", "target", "ground_truth", "label")
#: Fields that may hold the part of the benchmark, for reports.
GROUPS = ("group", "subject", "category", "split")
#: lmms-eval's saved samples (``*_samples_TASK.jsonl``): the reply after its filters, and the row's place in the data set.
SAMPLE = ("doc_id", "filtered_resps")
_SAMPLE_KEYS = {"mme": ("question_id",), "mmbench": ("index",), "textvqa": ("question_id",)}

#: LLaVA (llava_pope_test.jsonl) numbers POPE's splits apart: adversarial from 1, random from 10000001, popular from 20000001.
LLAVA_STEP = 10_000_000
LLAVA_SPLITS = ("adversarial", "random", "popular")


def is_sample(fields: Mapping[str, Any]) -> bool:
    """Say whether a row is one of lmms-eval's saved samples."""
    return all(name in fields for name in SAMPLE)


def _sample_key(benchmark: str, fields: Mapping[str, Any]) -> str | None:
    """Return the id that lmms-eval's metric of this benchmark leaves in a sample."""
    for part in fields.values():
        for name in _SAMPLE_KEYS.get(benchmark, ()):
            if isinstance(part, Mapping) and name in part:
                return str(part[name])
    return None


def sample_names_itself(benchmark: str, fields: Mapping[str, Any]) -> bool:
    """Say whether a saved sample names its question by more than its place in the data set."""
    return _sample_key(benchmark, fields) is not None


def reply_name(columns: Sequence[str], where: str) -> str:
    """Return the field that holds the reply.

    Raises:
        UserError: where there is none, or ``text`` and ``answer`` both are there (one may be the question, or the gold).
    """
    found = [name for name in REPLIES if name in columns]
    if not found:
        raise UserError(
            f"{where}: no field holds the reply; known: {', '.join(REPLIES)}; found: {', '.join(columns) or 'none'}"
        )
    if found[0] == "text" and "answer" in found:
        raise UserError(f"{where}: both 'text' and 'answer' could be the reply; rename the one that is to 'reply'")
    return found[0]


def reply(value: Any, where: str) -> str:
    """Return a reply as text.

    Raises:
        UserError: for anything but text (or lmms-eval's list of one text): no reply is not an empty reply.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    hint = "; write '' for an empty reply" if value is None else ""
    raise UserError(f"{where}: the reply is {value!r}, expected text{hint}")


def _identity(fields: Mapping[str, Any], where: str, *names: str) -> str:
    """Return the first of these fields as text.

    Raises:
        UserError: where there is none, or it is empty, or neither text nor a whole number.
    """
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise UserError(
            f"{where}: no field names the question; known: {', '.join(names)}; found: {', '.join(fields) or 'none'}"
        )
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(f"{where}: {name} is {value!r}, expected text or a whole number")
    return str(value).strip()


def _asked(fields: Mapping[str, Any]) -> str | None:
    return next((fields[name] for name in QUESTIONS if isinstance(fields.get(name), str)), None)


def group(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the part of the benchmark that a row says it belongs to, as ``{"group": ...}``, or nothing."""
    found = next((fields[name] for name in GROUPS if isinstance(fields.get(name), str) and fields[name]), None)
    return {} if found is None else {"group": found}


# ---- keys ------------------------------------------------------------------------------------------------------------------


def keys(benchmark: str, fields: Mapping[str, Any], where: str) -> list[tuple[str, ...]]:
    """Return what a row may call its question, the likeliest first; see :class:`tasks.answers.Gold` for the forms.

    Raises:
        UserError: where the row does not name a question.
    """
    if benchmark == "mme" and "image" not in fields and not is_sample(fields) and "question" not in fields:
        return [(_identity(fields, where, *IDS),)]
    if benchmark == "mme":
        return [_mme(fields, where)]
    if is_sample(fields):
        return [(str(_sample_key(benchmark, fields)),)]
    name = _identity(fields, where, *IDS)
    if benchmark == "pope":
        return _pope(fields, name)
    asked = _asked(fields)
    # LLaVA names TextVQA's questions by image and prompt
    return [(name,), (name, asked.split("\n")[0].strip().lower())] if benchmark == "textvqa" and asked else [(name,)]


def _pope(fields: Mapping[str, Any], name: str) -> list[tuple[str, ...]]:
    """Return (category, question_id); LLaVA's ids say the split themselves."""
    category = next((str(fields[n]).strip().lower() for n in ("category", "group", "split") if fields.get(n)), None)
    category = None if category is None else category.removeprefix("coco_pope_")  # as its label files are called
    found: list[tuple[str, ...]] = [] if category is None else [(category, name)]
    if name.isdecimal() and int(name) > LLAVA_STEP:
        number, rest = divmod(int(name), LLAVA_STEP)
        if number < len(LLAVA_SPLITS) and category in (None, LLAVA_SPLITS[number]):
            found.append((LLAVA_SPLITS[number], str(rest)))
    return [*found, (name,)]


def _mme(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return (category/image, question without its prompt suffix)."""
    picture = _sample_key("mme", fields) or fields.get("question_id") or fields.get("image")
    asked = _asked(fields)
    if not isinstance(picture, str) or not picture or asked is None:
        raise UserError(f"{where}: an MME reply names its image (or question_id) and question; found: {', '.join(fields)}")
    category = fields.get("category")
    return mme_key(picture if "/" in picture or not category else f"{category}/{picture}", asked)


# ---- what contradicts the gold ---------------------------------------------------------------------------------------------


def _bare(text: str) -> str:
    """Return the words of a question in one case, without what MME appends inside its questions."""
    return re.sub(r"\W+", " ", text.replace(SUFFIX, " ")).strip().casefold()


def contradiction(fields: Mapping[str, Any], question: Question) -> str | None:
    """Return how a row contradicts the gold, or None.

    Questions agree where one holds the other, apart from case and punctuation: prompts add to them, logs cut them. Gold
    answers are compared where the row's and ours are both yes or no, or both a letter.
    """
    ours = question.doc.get("question", question.doc.get("text"))
    asked = _asked(fields)
    if isinstance(ours, str) and asked is not None and _bare(asked) and _bare(ours):
        a, b = _bare(asked), _bare(ours)
        if a not in b and b not in a:
            return f"it asks {_short(asked)!r}, the gold {_short(ours)!r}"
    theirs = next((fields[name] for name in GOLDS if isinstance(fields.get(name), str)), None)
    if theirs is not None and theirs.strip().casefold() != question.answer.strip().casefold():
        words = {theirs.strip().casefold(), question.answer.strip().casefold()}
        if words <= {"yes", "no"} or all(len(word) == 1 for word in words):
            return f"it says that {theirs.strip()!r} is right, the gold says {question.answer!r}"
    return None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
