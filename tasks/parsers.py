"""What a reply says: text in, one prediction and one score 0..1 out.

``PARSERS`` may rewrite a reply before lmms-eval reads it (``lmms``: not at all). ``READERS`` take what lmms-eval's own
``process_results`` made of the reply and name the prediction in it; the score is always lmms-eval's. ``GUARDS`` refuse
questions that lmms-eval would score wrongly without a word.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.base import UserError
from tasks import engine
from tasks.questions import Question


class Reading(NamedTuple):
    """One reply, read: what it predicts, its score in 0..1, and whether it names no valid answer."""

    prediction: str
    score: float
    unparseable: bool


Reader = Callable[[Mapping[str, Any], Mapping[str, Any], str], Reading]

_LETTERS = string.ascii_uppercase
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_mmbench = engine.MMBench_Evaluator()


def _scienceqa(doc: Mapping[str, Any], record: Mapping[str, Any], reply: str) -> Reading:
    """A letter, in either case, or a capital letter and a full stop (lmms-eval ``sqa_process_results``)."""
    text = reply.strip()
    letter = text.upper() if len(text) == 1 else text[0] if text[1:2] == "." and text[0].isupper() else ""
    valid = letter != "" and letter in _LETTERS[: len(doc["choices"])]
    return Reading(letter, float(record["exact_match"]), not valid)


def _exact_match(doc: Mapping[str, Any], record: Mapping[str, Any], reply: str) -> Reading:  # noqa: ARG001
    """The reply without case and punctuation; only an empty one says nothing."""
    text = reply.strip().lower().translate(_PUNCTUATION)
    return Reading(text, float(record["exact_match"]), not text)


def _textvqa(doc: Mapping[str, Any], record: Mapping[str, Any], reply: str) -> Reading:  # noqa: ARG001
    """The reply after EvalAI's normalisation, scored by VQA soft accuracy over ten answers."""
    text = str(record["submission"]["answer"])
    return Reading(text, float(record["exact_match"]), not text)


def _pope(doc: Mapping[str, Any], record: Mapping[str, Any], reply: str) -> Reading:  # noqa: ARG001
    """Exactly ``yes`` or ``no``, in any case; anything else is wrong."""
    text = str(record["pope_accuracy"]["prediction"])
    return Reading(text, float(record["pope_accuracy"]["score"]), text not in ("yes", "no"))


def _mme(doc: Mapping[str, Any], record: Mapping[str, Any], reply: str) -> Reading:  # noqa: ARG001
    """yes or no among the first four characters (Otter's rule, lmms-eval ``parse_pred_ans``)."""
    part = record["mme_perception_score"] if "mme_perception_score" in record else record["mme_cognition_score"]
    text = str(engine.parse_mme_answer(reply.strip()))
    return Reading("" if text == "other" else text, float(part["score"]), text == "other")


def _mmbench_static(doc: Mapping[str, Any], record: Mapping[str, Any], reply: str) -> Reading:  # noqa: ARG001
    """A letter, an option's text, or a letter found by ``extract_mcq_answer``: ``MMBench_Evaluator.eval_sub_data``'s order."""
    item = {**record["gpt_eval_score"]}
    letter = _mmbench.prefetch_answer(item)
    if not letter:
        letter = engine.extract_mcq_answer(item["prediction"], choices=sorted(_mmbench.build_choices(item)))
    options = [name for name in "ABCD" if doc[name] is not None]
    return Reading(str(letter), float(letter == doc["answer"]), letter not in options)


def _whole_groups(questions: Sequence[Question]) -> None:
    """MMBench: missing cells are None, and clusters are exactly the rotations of one base question."""
    groups: dict[int, set[str]] = {}
    bases = set()
    for question in questions:
        for name in ("hint", "A", "B", "C", "D"):
            if question.doc[name] == "nan":
                raise UserError(
                    f"mmbench: question {question.id!r}: {name} is the text 'nan', which scores as an option; use None"
                )
        index = int(question.doc["index"])
        groups.setdefault(index % 1_000_000, set()).add(question.cluster)
        if index < 1_000_000:
            bases.add(index)
    if len({name for names in groups.values() for name in names}) != len(groups) or any(len(n) != 1 for n in groups.values()):
        raise UserError("mmbench: clusters are not the groups of rotations (index modulo 1000000)")
    orphans = sorted(set(groups) - bases)
    if orphans:
        raise UserError(
            f"mmbench: group {orphans[0]} has rotations but no base question (index below 1000000): it would not count"
        )


def _known_categories(questions: Sequence[Question]) -> None:
    """MME: a category outside lmms-eval's lists would count as cognition."""
    known = {name for part in engine.mme_categories.values() for name in part}
    for question in questions:
        if question.doc["category"] not in known:
            raise UserError(
                f"mme: question {question.id!r}: category {question.doc['category']!r}; known: {', '.join(sorted(known))}"
            )


PARSERS: dict[str, Callable[[str], str]] = {"lmms": lambda reply: reply}
READERS: dict[str, Reader] = {
    "scienceqa": _scienceqa,
    "exact_match": _exact_match,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench_static": _mmbench_static,
}
GUARDS: dict[str, Callable[[Sequence[Question]], None]] = {"mmbench_static": _whole_groups, "mme": _known_categories}
