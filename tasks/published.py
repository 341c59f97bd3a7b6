"""Published protocols: prompts and scores by the rules of ``tasks/protocols/*.py``. No torch, no lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.base import UserError
from tasks import rules
from tasks.catalogue import Protocol, check
from tasks.questions import Question, QuestionSet


class Reading(NamedTuple):
    """One reply, read: what it predicts, its score in 0..1, and whether it names no valid answer."""

    prediction: str
    score: float
    unparseable: bool


def prompts(protocol: Protocol, questions: QuestionSet, scored: bool = True) -> list[str]:
    """Return the prompt of every question, in order (no chat template, no image).

    Args:
        protocol: a published one.
        questions: checked against the protocol first.
        scored: False for training questions, which need no whole MME pairs.

    Raises:
        UserError: for questions that the protocol cannot ask.
    """
    check(protocol, questions, scored=scored)
    made = rules.rule("prompt", protocol.prompt)
    return [str(made(question.doc)) for question in questions.questions]


def read(protocol: Protocol, doc: Mapping[str, Any], reply: str) -> Reading:
    """Return one reply's prediction and score."""
    prediction, named = rules.rule("parser", protocol.parser)(reply, doc)
    return Reading(prediction, float(rules.rule("score", protocol.score)(prediction, doc)), not named)


def readings(protocol: Protocol, questions: Sequence[Question], replies: Sequence[str]) -> list[Reading]:
    """Return the readings of replies in the questions' order.

    Raises:
        UserError: for a question without a column that the rules read, named.
    """
    parser, score = rules.rule("parser", protocol.parser), rules.rule("score", protocol.score)
    made = []
    for question, reply in zip(questions, replies, strict=True):
        try:
            prediction, named = parser(reply, question.doc)
            made.append(Reading(prediction, float(score(prediction, question.doc)), not named))
        except KeyError as error:
            raise UserError(f"{protocol.name}: question {question.id!r} lacks the column {error}") from error
    return made
