"""From a checkpoint to replies on disk, and to what it predicts about the gold answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, write_jsonl
from tasks import bridge
from tasks.catalogue import Protocol
from tasks.prompting import prompts
from tasks.questions import QuestionSet
from tasks.scoring import prompt_digest

if TYPE_CHECKING:
    import pandas as pd

    from tasks.lmms import CheckpointModel

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
    instances, task, documents = bridge.requests(protocol, questions)
    model.task_dict[task] = documents
    results = model.generate_until(instances)
    if len(results) != len(questions.questions):
        raise RuntimeError(f"{protocol.name}: {len(results)} replies to {len(questions.questions)} questions")
    rows = []
    for question, instance, result in zip(questions.questions, instances, results, strict=True):
        rows.append(
            {
                "id": question.id,
                "cluster": question.cluster,
                "group": question.group,
                "prompt_sha256": prompt_digest(instance.args[0]),
                "reply": result.text,
                "tokens": result.token_counts.output_tokens,
            }
        )
    write_jsonl(replies_path, rows)
    return rows


@dataclass(frozen=True)
class Diagnosis:
    """How a model predicts the gold answers.

    Attributes:
        rows: one per question: protocol, id, nll (nats, mean over the tokens of the gold answer and its end token),
            confidence (largest probability) and entropy (nats) at the first answer token, teacher_agrees (the same most
            likely token as the teacher at every token of the gold answer), teacher_kl (nats, mean over those tokens of
            KL(teacher || model)). The last two are missing where there is no teacher.
        logprobs: per question float32 [tokens, V]; a teacher's are what :func:`diagnose` takes for its students.
    """

    rows: pd.DataFrame
    logprobs: list[NDArray[np.float32]]


def diagnose(
    model: CheckpointModel,
    protocol: Protocol,
    questions: QuestionSet,
    teacher: Sequence[NDArray[np.float32]] | None = None,
) -> Diagnosis:
    """Return the model's predictions of the gold answers, compared with the teacher's.

    Args:
        model: a loaded checkpoint.
        protocol: prompts.
        questions: what to ask; ``answer`` is the gold reply.
        teacher: :attr:`Diagnosis.logprobs` of the teacher on the same questions.

    Raises:
        UserError: when the teacher's arrays are for other questions or another vocabulary, or the model predicts NaN.
    """
    import pandas as pd

    asked = questions.questions
    if teacher is not None and len(teacher) != len(asked):
        raise UserError(f"{protocol.name}: the teacher's predictions are for {len(teacher)} questions, expected {len(asked)}")
    shown = [None if question.image is None else questions.images[question.image] for question in asked]
    answers = [question.answer for question in asked]
    found = model.gold_logprobs(prompts(protocol, questions), shown, answers)
    rows = []
    for n, (question, logs) in enumerate(zip(asked, found, strict=True)):
        if np.isnan(logs).any():
            raise UserError(f"{protocol.name}: the model predicts NaN for question {question.id!r}: its weights are damaged")
        agrees, divergence = (None, None) if teacher is None else _compare(protocol, question.id, teacher[n], logs)
        ids = model.answer_ids(question.answer)
        first = np.exp(logs[0].astype(np.float64))
        rows.append(
            (
                protocol.name,
                question.id,
                float(-logs[np.arange(len(ids)), ids].astype(np.float64).mean()),
                float(first.max()),
                _entropy(first, logs[0]),
                agrees,
                divergence,
            )
        )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return Diagnosis(frame.astype({"teacher_agrees": "boolean", "teacher_kl": "Float64"}), found)


def _entropy(probabilities: NDArray[np.float64], logs: NDArray[np.float32]) -> float:
    """Entropy in nats; a token of probability 0 adds nothing."""
    return float(-np.where(probabilities > 0, probabilities * np.where(probabilities > 0, logs, 0.0), 0.0).sum())


def _compare(protocol: Protocol, name: str, teacher: NDArray[np.float32], student: NDArray[np.float32]) -> tuple[bool, float]:
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
