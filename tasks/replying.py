"""Greedy replies to many prompts: batches, the trial of batching on the model at hand, and what is answered alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from tasks import batching, decoding
from tasks.prepared import PromptSet

if TYPE_CHECKING:
    from tasks.lmms import CheckpointModel

T = TypeVar("T")

#: New tokens after which replies that have not ended go on in batches of their own, so that ended ones cost nothing more.
CUTS = (16, 64, 256, 1024, 4096)
#: Rows of a batch that are answered alone as well, to learn how much batching changes logits on this model.
_TRIED = 4
#: A reply whose two largest logits came nearer than this many times that change is made again alone.
_SAFETY = 4.0
#: Roundings of the largest logit that padding may add on a model that it suits; a wrong position or mask adds far more.
_ROUNDINGS = 32.0


@dataclass(frozen=True)
class Reply:
    """Tokens, the end token included where one came.

    Attributes:
        alone: made by itself, because batching might have changed it.
        final: nothing more is to come, end token or not.
    """

    tokens: list[int]
    ended: bool = False
    alone: bool = False
    final: bool = False


@dataclass
class Trials:
    """What was learned about a model.

    Attributes:
        apart: logits nearer than this may change places with the batch; None before the trial.
        padding: whether padding on the left, and on the right for gold replies, gives what each prompt gives alone.
    """

    apart: float | None = None
    padding: dict[str, bool] = field(default_factory=dict)


def replies(
    model: CheckpointModel, trials: Trials, asked: PromptSet, chosen: Sequence[int], limit: int, numbers: Iterator[int]
) -> tuple[dict[int, Reply], bool]:
    """Return the greedy replies of at most ``limit`` tokens to the ``chosen`` prompts, and whether prompts were padded.

    ``numbers`` counts the batches.
    """
    items = [batching.Item(n, asked.rows[n].layout, asked.rows[n].length) for n in chosen]
    plan = batching.equal(items, model.batch_size)
    _try_batches(model, trials, asked, plan, numbers)
    padded = batching.worth_padding(items, model.batch_size) and _try_padding(model, trials, asked, items, limit, numbers)
    batches = batching.mixed if padded else batching.equal
    found = {n: Reply([]) for n in chosen}
    done = 0
    for cut in [cut for cut in CUTS if cut < limit] + [limit]:
        left = [n for n in chosen if not found[n].final]
        if not left:
            break
        step = cut - done
        items = [batching.Item(n, asked.rows[n].layout, asked.rows[n].length + done) for n in left]
        over, made = len(chosen) - len(left), {}
        for batch in batches(items, model.batch_size):
            if not model.mine(next(numbers)):
                continue
            made.update(_answer(model, trials, asked, batch, {n: found[n].tokens for n in batch}, (step, limit)))
            if model.progress is not None:
                over += sum(made[n].final for n in batch)
                model.progress(over, len(chosen))
        joined = model.joined(made)
        for n in left:
            found[n] = replace(joined[n], alone=found[n].alone or joined[n].alone)
        done = cut
    return found, padded


@torch.inference_mode()
def _decode(
    model: CheckpointModel, asked: PromptSet, batch: Sequence[int], limit: int, said: dict[int, list[int]] | None = None
) -> decoding.Decoded:
    return decoding.greedy(model.model, model.inputs(asked, batch, said), limit, model.stop, model.desk.pad)


def _answer(
    model: CheckpointModel,
    trials: Trials,
    asked: PromptSet,
    batch: Sequence[int],
    said: dict[int, list[int]],
    most: tuple[int, int],
) -> dict[int, Reply]:
    """Go on with the replies of a batch; near ones are made again alone.

    Args:
        said: the replies so far, by prompt.
        most: new tokens of this step, and tokens of a whole reply.
    """
    step, limit = most
    together = _decode(model, asked, batch, step, said)
    apart = 0.0 if trials.apart is None else trials.apart
    made = {}
    for k, n in enumerate(batch):
        near = len(batch) > 1 and float(together.nearest[k]) <= apart
        one, place = (_decode(model, asked, [n], step, said), 0) if near else (together, k)
        tokens = said[n] + one.tokens[place]
        if not one.ended[place] and len(tokens) < limit and model.marks.intersection(tokens):
            whole = _decode(model, asked, [n], limit)  # read again, such a token would stand for an image
            made[n] = Reply(whole.tokens[0], whole.ended[0], alone=True, final=True)
        else:
            made[n] = Reply(tokens, one.ended[place], near, one.ended[place] or len(tokens) >= limit)
    return made


def learned(model: CheckpointModel, numbers: Iterator[int], trial: Callable[[], T]) -> T:
    """Return what one process learns by a trial, on all of them: they have to agree on what shares a batch."""
    number = next(numbers)
    key = -1 - number  # no prompt's
    result: T = model.joined({key: trial()} if model.mine(number) else {})[key]
    return result


def _try_batches(
    model: CheckpointModel, trials: Trials, asked: PromptSet, plan: Sequence[Sequence[int]], numbers: Iterator[int]
) -> None:
    """Learn, once per model, how much a batch changes the distance of the two largest logits."""
    batch = next((batch for batch in plan if len(batch) > 1), None)
    if trials.apart is not None or batch is None:
        return

    def trial() -> float:
        together = _decode(model, asked, batch, 1)
        tried = range(0, len(batch), max(1, len(batch) // _TRIED))
        alone = [float(_decode(model, asked, [batch[k]], 1).first) for k in tried]
        change = max(abs(float(together.first[k]) - one) for k, one in zip(tried, alone, strict=True))
        rounding = torch.finfo(model.model.dtype).eps * together.scale
        return _SAFETY * max(change, rounding)

    trials.apart = learned(model, numbers, trial)


def _try_padding(
    model: CheckpointModel,
    trials: Trials,
    asked: PromptSet,
    items: Sequence[batching.Item],
    limit: int,
    numbers: Iterator[int],
) -> bool:
    """Return whether prompts that are padded on the left get the replies, and nearly the logits, that they get alone."""

    def trial() -> tuple[bool, float]:
        lengths = {item.number: item.length for item in items}
        plan = batching.mixed(items, model.batch_size)
        batch = max(plan, key=lambda b: max(lengths[n] for n in b) - min(lengths[n] for n in b))
        shortest = sorted(range(len(batch)), key=lambda k: lengths[batch[k]])[:_TRIED]
        together = _decode(model, asked, batch, min(limit, CUTS[0]))
        most = tolerance(model, together.scale)
        suits, apart = True, trials.apart or 0.0
        for k in shortest:
            alone = _decode(model, asked, [batch[k]], min(limit, CUTS[0]))
            change = abs(float(alone.first) - float(together.first[k]))
            suits = suits and change <= most and alone.tokens[0] == together.tokens[k]
            apart = max(apart, _SAFETY * min(change, most))
        return suits, apart

    if "left" not in trials.padding:
        trials.padding["left"], trials.apart = learned(model, numbers, trial)
    return trials.padding["left"]


def tolerance(model: CheckpointModel, scale: float) -> float:
    """Return how much logits of the size ``scale`` may differ by rounding alone."""
    return _ROUNDINGS * float(torch.finfo(model.model.dtype).eps) * max(scale, 1.0)
