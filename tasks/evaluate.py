"""From a checkpoint to replies on disk, and to what it predicts about the gold answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, write_jsonl
from tasks import bridge
from tasks.catalogue import Protocol
from tasks.questions import QuestionSet
from tasks.scoring import prompt_digest

if TYPE_CHECKING:
    import pandas as pd

    from tasks.lmms import CheckpointModel

Logs = NDArray[np.float32]
COLUMNS = ("protocol", "id", "nll", "confidence", "entropy", "teacher_agrees", "teacher_kl")


def evaluate(
    checkpoint: str | Path,
    protocol: Protocol,
    questions: QuestionSet,
    *,
    model: CheckpointModel | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    replies_path: str | Path,
) -> list[dict[str, Any]]:
    """Answer a protocol's questions and write the replies before anything scores them.

    Args:
        checkpoint: Hugging Face folder; not read when ``model`` is given.
        protocol: prompts and decoding.
        questions: what to ask.
        model: a loaded checkpoint, to evaluate it on several protocols.
        batch_size, device: where the checkpoint is loaded here.
        replies_path: JSON lines to write, atomically: id, cluster, group, prompt_sha256, reply, tokens (generated).

    Returns:
        The rows that were written, in the questions' order.

    Raises:
        UserError: for a checkpoint that cannot be loaded, or questions that the protocol cannot ask.
    """
    from tasks.lmms import CheckpointModel

    if model is None:
        model = CheckpointModel(checkpoint, batch_size=batch_size, device=device)
    asked = ask(model, protocol, questions)
    ready = model.desk.prompts(asked.prompts, asked.pictures, _key(protocol, questions))
    settings = [(int(i.args[1]["max_new_tokens"]), tuple(i.args[1]["until"])) for i in asked.instances]
    results = model.replies(ready, settings)
    if len(results) != len(questions.questions):
        raise RuntimeError(f"{protocol.name}: {len(results)} replies to {len(questions.questions)} questions")
    rows = []
    for question, prompt, result in zip(questions.questions, asked.prompts, results, strict=True):
        rows.append(
            {
                "id": question.id,
                "cluster": question.cluster,
                "group": question.group,
                "prompt_sha256": prompt_digest(prompt),
                "reply": result.text,
                "tokens": result.token_counts.output_tokens,
            }
        )
    write_jsonl(replies_path, rows)
    return rows


def ask(model: CheckpointModel, protocol: Protocol, questions: QuestionSet) -> bridge.Asked:
    """Return what a protocol asks, built once for all models that share this one's desks.

    Raises:
        UserError: for questions that the protocol cannot ask.
    """
    return model.desks.remember(_key(protocol, questions), lambda: bridge.requests(protocol, questions))


def _key(protocol: Protocol, questions: QuestionSet) -> tuple[str, ...]:
    """Name questions and the way they are asked."""
    ids = hashlib.sha256("\n".join(question.id for question in questions.questions).encode()).hexdigest()
    return protocol.name, str(protocol.version), questions.digest, ids


@dataclass(frozen=True)
class Diagnosis:
    """How a model predicts the gold answers.

    Attributes:
        rows: one per question: protocol, id, nll (nats, mean over the tokens of the gold answer and its end token),
            confidence (largest probability) and entropy (nats) at the first answer token, teacher_agrees (the same most
            likely token as the teacher at every token of the gold answer), teacher_kl (nats, mean over those tokens of
            KL(teacher || model)). The last two are missing where there is no teacher.
        logprobs: per question float32 [tokens, V]; a teacher's are what :func:`diagnose` takes for its students. Empty where
            they were not asked for.
    """

    rows: pd.DataFrame
    logprobs: list[Logs]


def diagnose(
    model: CheckpointModel,
    protocol: Protocol,
    questions: QuestionSet,
    teacher: Sequence[Logs] | None = None,
    *,
    keep: bool = True,
) -> Diagnosis:
    """Return the model's predictions of the gold answers, compared with the teacher's.

    Args:
        model: a loaded checkpoint.
        protocol: prompts.
        questions: what to ask; ``answer`` is the gold reply.
        teacher: :attr:`Diagnosis.logprobs` of the teacher on the same questions.
        keep: return :attr:`Diagnosis.logprobs`; without it no question's outlive its batch.

    Raises:
        UserError: when the teacher's arrays are for other questions or another vocabulary, or the model predicts NaN.
    """
    import pandas as pd

    asked = questions.questions
    if teacher is not None and len(teacher) != len(asked):
        raise UserError(f"{protocol.name}: the teacher's predictions are for {len(teacher)} questions, expected {len(asked)}")
    built = ask(model, protocol, questions)
    ready = model.desk.prompts(built.prompts, built.pictures, _key(protocol, questions))

    def row(n: int, logs: Logs) -> tuple[tuple[Any, ...], Logs | None]:
        question = asked[n]
        if np.isnan(logs).any():
            raise UserError(f"{protocol.name}: the model predicts NaN for question {question.id!r}: its weights are damaged")
        agrees, divergence = (None, None) if teacher is None else _compare(protocol, question.id, teacher[n], logs)
        ids = model.answer_ids(question.answer)
        first = np.exp(logs[0].astype(np.float64))
        nll = float(-logs[np.arange(len(ids)), ids].astype(np.float64).mean())
        values = (nll, float(first.max()), _entropy(first, logs[0]), agrees, divergence)
        return (protocol.name, question.id, *values), logs if keep else None

    found = model.predictions(ready, [question.answer for question in asked], row)
    frame = pd.DataFrame([values for values, _ in found], columns=list(COLUMNS))
    kept = [logs for _, logs in found if logs is not None]
    return Diagnosis(frame.astype({"teacher_agrees": "boolean", "teacher_kl": "Float64"}), kept)


def _entropy(probabilities: NDArray[np.float64], logs: Logs) -> float:
    """Entropy in nats; a token of probability 0 adds nothing."""
    return float(-np.where(probabilities > 0, probabilities * np.where(probabilities > 0, logs, 0.0), 0.0).sum())


def _compare(protocol: Protocol, name: str, teacher: Logs, student: Logs) -> tuple[bool, float]:
    """Return whether the most likely tokens agree everywhere, and the mean KL(teacher || student) in nats."""
    if teacher.shape != student.shape:
        raise UserError(
            f"{protocol.name}, question {name!r}: the teacher predicts {teacher.shape} (tokens, vocabulary), "
            f"the student {student.shape}: they need one tokenizer"
        )
    log_p, log_q = teacher.astype(np.float64), student.astype(np.float64)
    p = np.exp(log_p)
    held = p > 0
    divergence = (p * (np.where(held, log_p, 0.0) - np.where(held, log_q, 0.0))).sum(axis=-1)
    return bool((teacher.argmax(axis=-1) == student.argmax(axis=-1)).all()), float(divergence.mean())
