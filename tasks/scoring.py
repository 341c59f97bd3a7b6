"""From saved replies to per-question scores, by lmms-eval's metric code or published rules; no model and no network."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.base import UserError, nearest
from tasks import aggregate, prompting, published
from tasks.answers import Gold
from tasks.catalogue import Protocol, hint, load
from tasks.catalogue import protocol as find
from tasks.questions import Question, QuestionSet

if TYPE_CHECKING:
    from tasks.bridge import Asked

COLUMNS = ("protocol", "protocol_version", "id", "cluster", "group", "gold", "prediction", "score", "unparseable")
_CANDIDATES = 8


@dataclass(frozen=True)
class Scores:
    """What replies are worth under a protocol.

    Attributes:
        value: the protocol's number, in its unit (percent 0-100, or MME points).
        rows: one per question, in the questions' order: protocol, protocol_version, id, cluster, group, gold, prediction,
            score (float, 0..1), unparseable (bool: the reply names no valid answer).
        groups: the same aggregation over each group alone (POPE split, MME category, ...); empty where no group is known.
        left_out: number of replies to rows that the gold knows but the protocol leaves out.
        partial: whether rows were waived.
        notes: what a reader of a partial number must know, one sentence each.
        measures: further published measures in percent by group and over "all" (POPE: accuracy, precision, recall, F1 and
            the share of yes among the replies), empty where the benchmark has none.
    """

    value: float
    rows: pd.DataFrame
    groups: dict[str, float]
    left_out: int = 0
    partial: bool = False
    notes: tuple[str, ...] = ()
    measures: dict[str, dict[str, float]] = field(default_factory=dict)


def prompt_digest(prompt: str) -> str:
    """Return the SHA-256 (hex) that a saved reply carries of its prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def _by_id(
    protocol: Protocol, questions: QuestionSet, replies: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Mapping[str, Any]], int]:
    """Return the reply rows to counted questions by id, and how many answer rows that are left out."""
    left_out = questions.left_out if isinstance(questions, Gold) else {}
    known = {question.id for question in questions.questions}
    found: dict[str, Mapping[str, Any]] = {}
    aside: set[str] = set()
    for row in replies:
        if "id" not in row or "reply" not in row:
            raise UserError(f"{protocol.name}: a reply needs the fields id and reply, got {', '.join(map(str, row)) or 'none'}")
        name, reply = row["id"], row["reply"]
        if not isinstance(reply, str):
            raise UserError(f"{protocol.name}: the reply to {name!r} is {reply!r}, expected text")
        if name not in known and name not in left_out:
            close = nearest(str(name), known, n=1)
            raise UserError(
                f"{protocol.name}: unknown question id {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
            )
        if name in found or name in aside:
            raise UserError(f"{protocol.name}: two replies to question {name!r}")
        if name in known:
            found[name] = row
        else:
            aside.add(name)
    return found, len(aside)


def _check_rows(protocol: Protocol, questions: QuestionSet) -> None:
    """Refuse a gold file with another number of rows than the protocol's."""
    expected = protocol.data.rows
    if not isinstance(questions, Gold) or expected is None or len(questions.questions) == expected:
        return
    count = len(questions.questions)
    raise UserError(
        f"{protocol.name}: {questions.path} holds {count} rows that count, the protocol {expected}{hint(protocol, count)}; "
        "--partial scores what is there"
    )


def _present(
    protocol: Protocol, questions: QuestionSet, given: Mapping[str, Any], partial: bool
) -> tuple[QuestionSet, list[str]]:
    """Return the questions to score: all of them or, with ``partial``, those that can be; and what to say about that."""
    missing = [question.id for question in questions.questions if question.id not in given]
    if not partial:
        if missing:
            total = len(questions.questions)
            raise UserError(f"{protocol.name}: {len(missing)} of {total} questions have no reply, first {missing[0]!r}")
        return questions, []
    present = [question for question in questions.questions if question.id in given]
    notes = []
    if missing:
        notes.append(f"{len(missing)} of {len(questions.questions)} questions have no reply")
    whole = Counter(question.cluster for question in questions.questions)
    there = Counter(question.cluster for question in present)
    broken = {name for name, count in there.items() if count < whole[name]}
    if broken and protocol.aggregation == "mme":  # half a pair has no accuracy+
        notes.append(f"{len(broken)} pairs are half answered and left out")
        present = [question for question in present if question.cluster not in broken]
    elif broken and protocol.aggregation == "mmbench_circular":
        notes.append(f"{len(broken)} question groups lack rotations and are judged by those that are there")
    if not present:
        raise UserError(f"{protocol.name}: no question can be scored: {'; '.join(notes)}")
    return replace(questions, questions=tuple(present)), notes


def _check_prompts(protocol: Protocol, questions: QuestionSet, rows: Sequence[Mapping[str, Any]], asked: Asked | None) -> None:
    """Refuse replies that say they answered other prompts than the protocol's."""
    if not any("prompt_sha256" in row for row in rows):
        return
    prompts = prompting.prompts(protocol, questions) if asked is None else asked.prompts
    for row, prompt in zip(rows, prompts, strict=True):
        if row.get("prompt_sha256", prompt_digest(prompt)) != prompt_digest(prompt):
            raise UserError(f"{protocol.name}: the reply to {row['id']!r} was made for another prompt than this protocol's")


def _frame(
    protocol: Protocol, questions: Sequence[Question], readings: Sequence[tuple[str, float, bool]], groups: Sequence[str]
) -> pd.DataFrame:
    rows = [
        (protocol.name, protocol.version, question.id, question.cluster, group, question.answer, *reading)
        for question, reading, group in zip(questions, readings, groups, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def score(
    protocol: Protocol | str,
    replies: Iterable[Mapping[str, Any]],
    gold: QuestionSet | None = None,
    partial: bool = False,
    asked: Asked | None = None,
) -> Scores:
    """Score saved replies.

    Args:
        protocol: the protocol or its name.
        replies: rows with ``id`` and ``reply``; a ``prompt_sha256`` is checked; a ``group`` is taken where the gold names
            none; further fields are ignored.
        gold: the questions (:func:`tasks.gold` or :func:`tasks.load`); default: the protocol's own.
        partial: score the questions that have a reply and waive the number of rows.
        asked: what ``gold`` asks under this protocol (:func:`tasks.evaluate.ask`), where it was built before.

    Returns:
        The protocol's number, per-question rows and per-group numbers.

    Raises:
        UserError: when a reply is missing, given twice, not text, answers an unknown question or another prompt, or the gold
            has another number of rows than the protocol.
        RuntimeError: when lmms-eval's own aggregate disagrees with ours: its metric code is not the one we tested.
    """
    protocol = find(protocol) if isinstance(protocol, str) else protocol
    questions = load(protocol) if gold is None else gold
    if not partial:
        _check_rows(protocol, questions)
    by_id, left_out = _by_id(protocol, questions, replies)
    questions, notes = _present(protocol, questions, by_id, partial)
    given = [by_id[question.id] for question in questions.questions]
    asked = asked if questions is gold else None  # the scoring is of all that was asked
    _check_prompts(protocol, questions, given, asked)
    texts = [row["reply"] for row in given]
    groups = [question.group or str(row.get("group", "")) for question, row in zip(questions.questions, given, strict=True)]
    if protocol.scorer == "published":
        frame = _frame(protocol, questions.questions, published.readings(protocol, questions.questions, texts), groups)
        value = aggregate.aggregate(frame, protocol.aggregation)
    else:
        from tasks import replay

        readings, results = replay.readings(protocol, questions, texts, None if asked is None else asked.task)
        frame = _frame(protocol, questions.questions, readings, groups)
        value = aggregate.aggregate(frame, protocol.aggregation)
        replay.agree(protocol, results, value)
    named = frame[frame["group"] != ""]
    parts = {str(name): aggregate.aggregate(part, protocol.aggregation) for name, part in named.groupby("group", sort=True)}
    measures = aggregate.measures(frame, protocol.aggregation)
    return Scores(value, frame, parts, left_out, partial, tuple(notes), measures)


def constant_level(protocol: Protocol, questions: QuestionSet) -> tuple[str, float]:
    """Return the best constant answer and its value: what a model gets that never looks at the question.

    Tried are the eight most frequent gold replies (all of them where a benchmark has no more), each given to every
    question and scored by the protocol; ties go to the more frequent, then to the alphabet.
    """
    asked = questions.questions
    counts = Counter(question.answer for question in asked)
    frequent = sorted(counts, key=lambda answer: (-counts[answer], answer))[:_CANDIDATES]
    tried: Sequence[Sequence[tuple[str, float, bool]]]
    if protocol.scorer == "published":
        tried = [published.readings(protocol, asked, [answer] * len(asked)) for answer in frequent]
    else:
        from tasks import replay

        tried = replay.constants(protocol, questions, frequent)
    best: tuple[str, float] | None = None
    for answer, readings in zip(frequent, tried, strict=True):
        frame = _frame(protocol, asked, readings, [question.group for question in asked])
        value = aggregate.aggregate(frame, protocol.aggregation)
        if best is None or value > best[1]:
            best = (answer, value)
    if best is None:
        raise UserError(f"{protocol.name}: there are no questions")
    return best
