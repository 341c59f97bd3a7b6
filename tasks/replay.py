"""Scores by lmms-eval's own metric code: a model that answers with saved replies, and lmms-eval's number beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks import bridge, engine, parsers
from tasks.catalogue import Protocol
from tasks.questions import Question, QuestionSet


class Replay(engine.lmms):  # type: ignore[misc]
    """A model that answers question n with the n-th saved reply."""

    is_simple = True

    def __init__(self, replies: Sequence[str]) -> None:
        super().__init__()
        self._replies = replies

    def generate_until(self, requests: list[engine.Instance]) -> list[str]:
        """Return the saved replies."""
        return [self._replies[request.doc_id] for request in requests]

    def generate_until_multi_round(self, requests: list[engine.Instance]) -> list[str]:
        """Refuse."""
        raise NotImplementedError("replies are single turns")

    def loglikelihood(self, requests: list[engine.Instance]) -> list[tuple[float, bool]]:
        """Refuse."""
        raise NotImplementedError("replies carry no likelihoods")

    def clean(self) -> None:
        """Nothing to free; the inherited method would delete modules."""


def readings(
    protocol: Protocol, questions: QuestionSet, replies: Sequence[str], task: bridge.LocalTask | None = None
) -> tuple[list[parsers.Reading], Mapping[str, Any]]:
    """Return the readings of replies in the questions' order, and lmms-eval's results; ``task`` where it was built before.

    Raises:
        UserError: for questions that lmms-eval would score wrongly.
        RuntimeError: when lmms-eval scored another number of questions.
    """
    texts = [parsers.PARSERS[protocol.parser](reply) for reply in replies]
    results = engine.run(Replay(texts), bridge.build(protocol, questions) if task is None else task)
    (samples,) = results["samples"].values()
    records = {int(sample["doc_id"]): sample for sample in samples}
    if sorted(records) != list(range(len(texts))):
        raise RuntimeError(f"{protocol.name}: lmms-eval scored {len(records)} of {len(texts)} questions")
    reader = parsers.READERS[protocol.score]
    return [reader(q.doc, records[n], texts[n]) for n, q in enumerate(questions.questions)], results


def constants(protocol: Protocol, questions: QuestionSet, answers: Sequence[str]) -> list[list[parsers.Reading]]:
    """Return, per constant answer, its readings on every question."""
    task = bridge.build(protocol, questions)
    docs = bridge.Docs(questions, pictures=False)
    reader = parsers.READERS[protocol.score]

    def read(question: Question, doc: dict[str, Any], text: str) -> parsers.Reading:
        return reader(question.doc, task.process_results(doc, [text]), text)

    texts = [parsers.PARSERS[protocol.parser](answer) for answer in answers]
    return [[read(q, doc, text) for q, doc in zip(questions.questions, docs, strict=True)] for text in texts]


def agree(protocol: Protocol, results: Mapping[str, Any], value: float) -> None:
    """Compare our number with lmms-eval's where the protocol says they are the same thing.

    Raises:
        RuntimeError: when they differ: lmms-eval's metric code is not the one we tested.
    """
    if not protocol.metrics:
        return
    (reported,) = results["results"].values()
    parts = {key.split(",")[0]: number for key, number in reported.items() if "," in key}
    present = [float(parts[name]) for name in protocol.metrics if isinstance(parts.get(name), (int, float))]
    theirs = protocol.scale * sum(present)
    if not present or not math.isclose(theirs, value, rel_tol=1e-9, abs_tol=1e-6):
        raise RuntimeError(f"{protocol.name}: lmms-eval reports {theirs} ({parts}), our aggregation {value}")
