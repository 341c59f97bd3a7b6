"""One model on one protocol: replies first, then their scores and the diagnostics against the teacher."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, read_jsonl
from harness.stages import data
from harness.stages.student import use_torch

if TYPE_CHECKING:
    from harness.workers import Context
    from tasks.lmms import CheckpointModel

#: Raise when the same checkpoint would get other replies, scores or diagnostics.
STAGE_VERSION = 1

#: The replies, and what is computed from them, beside each other.
SUFFIXES = (".jsonl", ".scores.parquet", ".diagnostics.parquet")
_REPLIES, _SCORES, _DIAGNOSTICS = SUFFIXES

Logs = NDArray[np.float32]


def gold(protocol: str) -> str:
    """Return where the teacher's log-probabilities of the gold answers are kept, relative to the run folder."""
    return f"teacher/gold/{protocol}.npz"


def run(context: Context) -> None:
    """Write replies, scores and diagnostics of one model on one protocol; for the teacher, its log-probabilities as well.

    An attempt that was stopped after the replies were written goes on from them.
    """
    import tasks
    from tasks.evaluate import diagnose, evaluate

    use_torch(context)
    config = context.config
    protocol = tasks.protocol(config["protocol"]["name"])
    questions = data.load_questions(context, protocol, config["limit"])
    out = {Path(target).name.removeprefix(protocol.name): context.out(target) for target in context.stage.targets}
    model = _model(context)
    if out[_REPLIES].is_file():
        replies = read_jsonl(out[_REPLIES])
    else:
        replies = evaluate(context.place("checkpoint"), protocol, questions, model=model, replies_path=out[_REPLIES])
    tasks.score(protocol, replies, gold=questions).rows.to_parquet(out[_SCORES], index=False)
    ids = [q.id for q in questions.questions]
    teacher = None if config["name"] == "teacher" else _read_gold(context.root / gold(protocol.name), ids)
    diagnosis = diagnose(model, protocol, questions, teacher)
    diagnosis.rows.to_parquet(out[_DIAGNOSTICS], index=False)
    if config["name"] == "teacher":
        _write_gold(context.out(gold(protocol.name)), ids, diagnosis.logprobs)


def _model(context: Context) -> CheckpointModel:
    """Load the checkpoint once for all protocols of this job."""
    from tasks.lmms import CheckpointModel

    memory = context.memory
    memory["progress"] = context.progress  # the model outlives the stage, its progress must not

    def load() -> CheckpointModel:
        return CheckpointModel(
            context.place("checkpoint"),
            batch_size=context.config["batch_size"],
            device=context.settings.device,
            progress=lambda done, total: memory["progress"](done, total),
        )

    model: CheckpointModel = context.remember("checkpoint", context.stage.job, load)
    return model


def _write_gold(path: Path, ids: Sequence[str], logs: Sequence[Logs]) -> None:
    """Write per-question arrays [tokens, V] as one array with offsets."""
    offsets = np.cumsum([0, *(len(part) for part in logs)])
    arrays: dict[str, Any] = {"ids": np.array(ids), "offsets": offsets, "logprobs": np.concatenate(logs)}
    with path.open("wb") as file:  # given a name, NumPy would add a suffix of its own
        np.savez(file, **arrays)


def _read_gold(path: Path, ids: Sequence[str]) -> list[Logs]:
    """Read what :func:`_write_gold` wrote.

    Raises:
        UserError: naming the file when it cannot be read or is about other questions.
    """
    try:
        with np.load(path) as archive:
            known, offsets, joined = archive["ids"].tolist(), archive["offsets"], archive["logprobs"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}). Delete it and run the same command again") from error
    if known != list(ids):
        raise UserError(f"{path} is about other questions. Delete it and run the same command again")
    return [joined[a:b] for a, b in itertools.pairwise(offsets)]
