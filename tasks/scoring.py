"""From saved replies to per-question scores, by lmms-eval's own metric code; no model and no network."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.base import UserError, nearest
from tasks import aggregate, bridge, engine, parsers
from tasks.catalogue import Protocol, load
from tasks.catalogue import protocol as find
from tasks.questions import Question, QuestionSet

COLUMNS = ("protocol", "protocol_version", "id", "cluster", "group", "gold", "prediction", "score", "unparseable")
_CANDIDATES = 8


@dataclass(frozen=True)
class Scores:
    """What replies are worth under a protocol.

    Attributes:
        value: the protocol's number, in its unit (percent 0-100, or MME points).
        rows: one per question, in the questions' order: protocol, protocol_version, id, cluster, group, gold, prediction,
            score (float, 0..1), unparseable (bool: the reply names no valid answer).
        groups: the same aggregation over each group alone (POPE split, MME category, ...).
    """

    value: float
    rows: pd.DataFrame
    groups: dict[str, float]


class _Replay(engine.lmms):  # type: ignore[misc]
    """A model that answers question n with the n-th saved reply."""

    is_simple = True

    def __init__(self, replies: Sequence[str]) -> None:
        super().__init__()
        self._replies = replies

    def generate_until(self, requests: list[engine.Instance]) -> list[str]:
        return [self._replies[request.doc_id] for request in requests]

    def generate_until_multi_round(self, requests: list[engine.Instance]) -> list[str]:
        raise NotImplementedError("replies are single turns")

    def loglikelihood(self, requests: list[engine.Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("replies carry no likelihoods")

    def clean(self) -> None:
        """Nothing to free; the inherited method would delete modules."""


def prompt_digest(prompt: str) -> str:
    """Return the SHA-256 (hex) that a saved reply carries of its prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def _ordered(protocol: Protocol, questions: QuestionSet, replies: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the reply rows in the questions' order; see :func:`score` for what is refused."""
    known = {question.id for question in questions.questions}
    by_id: dict[str, Mapping[str, Any]] = {}
    for row in replies:
        if "id" not in row or "reply" not in row:
            raise UserError(f"{protocol.name}: a reply needs the fields id and reply, got {', '.join(map(str, row)) or 'none'}")
        name, reply = row["id"], row["reply"]
        if not isinstance(reply, str):
            raise UserError(f"{protocol.name}: the reply to {name!r} is {reply!r}, expected text")
        if name not in known:
            close = nearest(str(name), known, n=1)
            raise UserError(
                f"{protocol.name}: unknown question id {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
            )
        if name in by_id:
            raise UserError(f"{protocol.name}: two replies to question {name!r}")
        by_id[name] = row
    missing = [question.id for question in questions.questions if question.id not in by_id]
    if missing:
        raise UserError(f"{protocol.name}: {len(missing)} of {len(known)} questions have no reply, first {missing[0]!r}")
    return [by_id[question.id] for question in questions.questions]


def _check_prompts(protocol: Protocol, questions: QuestionSet, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse replies that say they answered other prompts than the protocol's."""
    if not any("prompt_sha256" in row for row in rows):
        return
    for row, prompt in zip(rows, bridge.prompts(protocol, questions), strict=True):
        if row.get("prompt_sha256", prompt_digest(prompt)) != prompt_digest(prompt):
            raise UserError(f"{protocol.name}: the reply to {row['id']!r} was made for another prompt than this protocol's")


def _row(protocol: Protocol, question: Question, record: Mapping[str, Any], reply: str) -> tuple[Any, ...]:
    """One row of :attr:`Scores.rows`, in the order of ``COLUMNS``."""
    read = parsers.READERS[protocol.score](question.doc, record, reply)
    facts = (protocol.name, protocol.version, question.id, question.cluster, question.group, question.answer)
    return (*facts, read.prediction, read.score, read.unparseable)


def score(protocol: Protocol | str, replies: Iterable[Mapping[str, Any]], gold: QuestionSet | None = None) -> Scores:
    """Score saved replies with lmms-eval's metric code.

    Args:
        protocol: the protocol or its name.
        replies: rows with ``id`` and ``reply``; a ``prompt_sha256`` is checked, further fields are ignored.
        gold: the questions; default: the protocol's own.

    Returns:
        The protocol's number, per-question rows and per-group numbers.

    Raises:
        UserError: when a reply is missing, given twice, not text, answers an unknown question or another prompt.
        RuntimeError: when lmms-eval's own aggregate disagrees with ours: its metric code is not the one we tested.
    """
    protocol = find(protocol) if isinstance(protocol, str) else protocol
    questions = load(protocol) if gold is None else gold
    given = _ordered(protocol, questions, replies)
    _check_prompts(protocol, questions, given)
    texts = [parsers.PARSERS[protocol.parser](row["reply"]) for row in given]
    results = engine.run(_Replay(texts), bridge.build(protocol, questions))
    (samples,) = results["samples"].values()
    records = {int(sample["doc_id"]): sample for sample in samples}
    if sorted(records) != list(range(len(texts))):
        raise RuntimeError(f"{protocol.name}: lmms-eval scored {len(records)} of {len(texts)} questions")
    rows = [_row(protocol, q, records[n], texts[n]) for n, q in enumerate(questions.questions)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    value = aggregate.aggregate(frame, protocol.aggregation)
    _agree(protocol, results, value)
    groups = {str(name): aggregate.aggregate(part, protocol.aggregation) for name, part in frame.groupby("group", sort=True)}
    return Scores(value, frame, groups)


def _agree(protocol: Protocol, results: Mapping[str, Any], value: float) -> None:
    """Compare our number with lmms-eval's where the protocol says they are the same thing."""
    if not protocol.metrics:
        return
    (reported,) = results["results"].values()
    parts = {key.split(",")[0]: number for key, number in reported.items() if "," in key}
    present = [float(parts[name]) for name in protocol.metrics if isinstance(parts.get(name), (int, float))]
    theirs = protocol.scale * sum(present)
    if not present or not math.isclose(theirs, value, rel_tol=1e-9, abs_tol=1e-6):
        raise RuntimeError(f"{protocol.name}: lmms-eval reports {theirs} ({parts}), our aggregation {value}")


def constant_level(protocol: Protocol, questions: QuestionSet) -> tuple[str, float]:
    """Return the best constant answer and its value: what a model gets that never looks at the question.

    Tried are the eight most frequent gold replies (all of them where a benchmark has no more), each given to every
    question and scored by the protocol; ties go to the more frequent, then to the alphabet.
    """
    counts = Counter(question.answer for question in questions.questions)
    frequent = sorted(counts, key=lambda answer: (-counts[answer], answer))[:_CANDIDATES]
    task = bridge.build(protocol, questions)
    docs = bridge.Docs(questions, pictures=False)
    best: tuple[str, float] | None = None
    for answer in frequent:
        text = parsers.PARSERS[protocol.parser](answer)
        rows = [
            _row(protocol, question, task.process_results(doc, [text]), text)
            for question, doc in zip(questions.questions, docs, strict=True)
        ]
        value = aggregate.aggregate(pd.DataFrame(rows, columns=list(COLUMNS)), protocol.aggregation)
        if best is None or value > best[1]:
            best = (answer, value)
    if best is None:
        raise UserError(f"{protocol.name}: there are no questions")
    return best
