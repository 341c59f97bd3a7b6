"""One model on one protocol: replies first, then their scores and the diagnostics against the teacher."""

from __future__ import annotations

import itertools
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, read_jsonl, write_json
from harness.stages import data
from harness.stages.student import seen, use_torch

if TYPE_CHECKING:
    from harness.workers import Context
    from students.distributed import Ranks
    from tasks.catalogue import Protocol
    from tasks.lmms import CheckpointModel
    from tasks.questions import QuestionSet

#: Raise when the same checkpoint would get other replies, scores or diagnostics.
STAGE_VERSION = 2

#: The replies, and what is computed from them, beside each other.
SUFFIXES = (".jsonl", ".scores.parquet", ".words.json", ".diagnostics.parquet")
WITHOUT_DIAGNOSTICS = SUFFIXES[:-1]
_REPLIES, _SCORES, WORDS, _DIAGNOSTICS = SUFFIXES

Logs = NDArray[np.float32]


def gold(protocol: str) -> str:
    """Return where the teacher's log-probabilities of the gold answers are kept, relative to the run folder."""
    return f"teacher/gold/{protocol}.npz"


def run(context: Context) -> None:
    """Write replies, scores, unknown words and diagnostics of one model on one protocol.

    For the teacher, its log-probabilities of the gold answers as well. An attempt that was stopped after the replies were
    written goes on from them.

    Raises:
        UserError: for a checkpoint or questions that cannot be read, and for too little memory, naming the batch.
    """
    with explained(context):
        _run(context)


@contextmanager
def explained(context: Context) -> Iterator[None]:
    """Turn a shortage of memory into one line that says what was asked of it and what needs less."""
    from students.shortage import is_shortage

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        config = context.config
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"out of memory evaluating {config['name']} on {config['protocol']['name']}, {config['batch_size']} questions at"
            f" once; change in the preset's evaluation: batch_size (now {config['batch_size']}), dtype (now"
            f" {config.get('dtype', 'float32')}). The allocator said: {first}"
        ) from error


def _run(context: Context) -> None:
    import tasks
    from students.distributed import ranks
    from tasks.evaluate import ask, evaluate

    use_torch(context)
    config = context.config
    protocol = tasks.protocol(config["protocol"]["name"])
    questions = data.load_questions(context, protocol, config["limit"])
    incomplete = bool(config.get("incomplete"))
    out = {Path(target).name.removeprefix(protocol.name): context.out(target) for target in context.stage.targets}
    mine = ranks()
    model = _model(context)
    model.share = Share(mine) if mine.world > 1 else None
    if mine.tell(out[_REPLIES].is_file()):  # only the first process has cleared what an attempt at something else left
        replies = read_jsonl(out[_REPLIES])
    else:
        with _written(out[_REPLIES], mine) as path:
            replies = evaluate(context.place("checkpoint"), protocol, questions, model=model, replies_path=path)
    asked = ask(model, protocol, questions)
    if mine.first:
        scores = tasks.score(protocol, replies, gold=questions, partial=incomplete, asked=asked)
        scores.rows.to_parquet(out[_SCORES], index=False)
    if _DIAGNOSTICS in out:
        _diagnose(context, model, protocol, questions, out[_DIAGNOSTICS] if mine.first else None)
    how = _how(context, model)
    if mine.first:
        key = ("unknown words", protocol.name, config["limit"])
        lost = model.desk.remember(key, lambda: unknown_words(model.processor.tokenizer, asked.prompts))
        write_json(out[WORDS], {**lost, "squeezed_to": context.memory["squeezed"], "how": how})


def _how(context: Context, model: CheckpointModel) -> dict[str, Any]:
    """Return what the numbers were computed with; ``replies`` is None for replies of an attempt that was stopped."""
    facts = {"batch_size": model.batch_size, "attention": model.attention(), "device": model.model.device.type}
    parts = {name: model.how.pop(name, None) for name in ("replies", "gold")}
    dtype = str(model.model.dtype).removeprefix("torch.")
    return {**facts, "dtype": dtype, "vision": context.memory["vision_why"], **parts}


def _diagnose(context: Context, model: CheckpointModel, protocol: Protocol, questions: QuestionSet, out: Path | None) -> None:
    """Write what the model predicts about the gold answers, and a teacher's log-probabilities for its students.

    Args:
        context, model, protocol, questions: what is evaluated.
        out: where the first process writes; None on the others, which compute their part.
    """
    from tasks.evaluate import diagnose

    name, ids = context.config["name"], [q.id for q in questions.questions]
    taught = context.config["taught"] and name != "teacher"
    teacher = _read_gold(context.root / gold(protocol.name), ids) if taught else None
    diagnosis = diagnose(model, protocol, questions, teacher, keep=name == "teacher")
    if out is None:
        return
    diagnosis.rows.to_parquet(out, index=False)
    if name == "teacher":
        _write_gold(context.out(gold(protocol.name)), ids, diagnosis.logprobs)


@contextmanager
def _written(path: Path, mine: Ranks) -> Iterator[Path]:
    """Yield where to write: ``path`` in the first process, and in the others a place that is forgotten."""
    if mine.first:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name


@dataclass(frozen=True)
class Share:
    """A process's part of an evaluation: every n-th batch. See :class:`tasks.lmms.Share`."""

    ranks: Ranks

    def mine(self, number: int) -> bool:
        """Say whether this process computes batch ``number``."""
        return number % self.ranks.world == self.ranks.rank

    def join(self, found: dict[int, Any]) -> dict[int, Any]:
        """Return the results of all processes by number of prompt, on every process."""
        return {number: value for part in self.ranks.gather(found) for number, value in part.items()}


def unknown_words(tokenizer: Any, prompts: Sequence[str]) -> dict[str, int]:
    """Count what of the prompts the tokenizer cannot tell apart: words that it only knows as its unknown token.

    Returns:
        prompts, prompts_affected (with at least one such word), tokens, tokens_unknown; the last two over all prompts.
    """
    counts = {"prompts": len(prompts), "prompts_affected": 0, "tokens": 0, "tokens_unknown": 0}
    for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]:
        lost = 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
        counts["prompts_affected"] += lost > 0
        counts["tokens"] += len(ids)
        counts["tokens_unknown"] += lost
    return counts


def squeeze(model: CheckpointModel) -> int | None:
    """Let a model whose processor resizes nothing take images of any size: they are squeezed to the size that it was made for.

    Images of that size are not changed by it. Returns the side in pixels, or None for a model that resizes by itself.
    """
    pictures = getattr(model.processor, "image_processor", None)
    side = getattr(getattr(model.model.config, "vision_config", None), "image_size", None)
    if pictures is None or pictures.do_resize or not isinstance(side, int):
        return None
    pictures.do_resize, pictures.size = True, {"height": side, "width": side}
    return side


def _model(context: Context) -> CheckpointModel:
    """Load the checkpoint once for all protocols of this job."""
    from students import models
    from students.vision.recall import Memory, recall
    from tasks.lmms import CheckpointModel
    from tasks.prepared import Desks

    models.register()

    memory = context.memory
    memory["progress"] = context.progress  # the model outlives the stage, its progress must not

    def load() -> CheckpointModel:
        loaded = CheckpointModel(
            context.place("checkpoint"),
            batch_size=context.config["batch_size"],
            device=context.settings.device,
            dtype=context.config.get("dtype", "float32"),
            progress=lambda done, total: memory["progress"](done, total),
            desks=memory.setdefault("desks", Desks()),
        )
        memory["squeezed"] = squeeze(loaded)
        remembered = memory.setdefault("vision", Memory())
        loaded.recall, memory["vision_why"] = recall(loaded.model, loaded.processor, seen(context), remembered)
        return loaded

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
