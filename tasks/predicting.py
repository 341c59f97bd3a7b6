"""What a model predicts at each token of gold replies: batches of equal lengths, or padded on the right.

A causal model never reads what stands to the right, so padding there leaves positions and attention as they are; it is used
where batches of equal lengths would be nearly empty, and a trial on the model at hand gives what each prompt gives alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks import batching
from tasks.prepared import PromptSet
from tasks.replying import Trials, learned, tolerance

if TYPE_CHECKING:
    from tasks.lmms import CheckpointModel

Floats32 = NDArray[np.float32]
Reduce = Callable[[int, Floats32], Any]

#: Most logits of one pass; above, only those of the answers are computed, where the model can.
_LOGITS = 1 << 26
_TRIED = 4


def predictions(
    model: CheckpointModel,
    trials: Trials,
    asked: PromptSet,
    targets: Sequence[Sequence[int]],
    numbers: Iterator[int],
    reduce: Reduce | None = None,
) -> tuple[dict[int, Any], bool]:
    """Return what is predicted at each token of the gold replies, and whether prompts were padded.

    Args:
        model, asked: what is asked.
        trials: what is known about the model.
        targets: per prompt the tokens of its gold reply, the end token included.
        numbers: counts the batches.
        reduce: what is kept of a prompt's log-probabilities, float32 [tokens, V], given its number; all without it.
    """
    items, exact = [], []
    for n, target in enumerate(targets):
        row = asked.rows[n]
        items.append(batching.Item(n, row.layout, row.length + len(target) - 1))
        exact.append(batching.Item(n, (len(target), row.layout), row.length))
    worth = batching.worth(exact, items, model.batch_size)
    padded = worth and _try_padding(model, trials, asked, items, targets, numbers)
    found: dict[int, Any] = {}
    for batch in batching.mixed(items, model.batch_size) if padded else batching.equal(exact, model.batch_size):
        if not model.mine(next(numbers)):
            continue
        for n, logs in zip(batch, _predict(model, asked, batch, targets), strict=True):
            found[n] = logs if reduce is None else reduce(n, logs)
        if model.progress is not None:
            model.progress(len(found), len(targets))
    return model.joined(found), padded


@torch.inference_mode()
def _predict(
    model: CheckpointModel, asked: PromptSet, batch: Sequence[int], targets: Sequence[Sequence[int]]
) -> list[Floats32]:
    """Return log-probabilities in nats, float32 [tokens of the gold reply, V], per prompt of a batch."""
    said = {n: targets[n][:-1] for n in batch}  # the last one is only ever predicted
    inputs = model.inputs(asked, batch, said, left=False)
    starts = [asked.rows[n].length - 1 for n in batch]
    length = inputs["input_ids"].shape[1]
    options: dict[str, Any] = {"use_cache": False}
    size = len(batch) * length * int(model.model.config.get_text_config().vocab_size)
    if size > _LOGITS and "logits_to_keep" in inspect.signature(model.model.forward).parameters:
        options["logits_to_keep"] = length - min(starts)
    logits = model.model(**inputs, **options).logits
    before = length - logits.shape[1]
    found = []
    ends = {(start - before, len(targets[n])) for start, n in zip(starts, batch, strict=True)}
    if len(ends) == 1:  # of equal lengths: one slice
        ((start, count),) = ends
        return list(torch.log_softmax(logits[:, start : start + count].float(), dim=-1).cpu().numpy())
    for k, (start, n) in enumerate(zip(starts, batch, strict=True)):
        chosen = logits[k, start - before : start - before + len(targets[n])]
        found.append(torch.log_softmax(chosen.float(), dim=-1).cpu().numpy())
    return found


def _try_padding(
    model: CheckpointModel,
    trials: Trials,
    asked: PromptSet,
    items: Sequence[batching.Item],
    targets: Sequence[Sequence[int]],
    numbers: Iterator[int],
) -> bool:
    """Return whether prompts that are padded on the right get what they get alone."""

    def trial() -> bool:
        lengths = {item.number: item.length for item in items}
        plan = batching.mixed(items, model.batch_size)
        batch = max(plan, key=lambda b: max(lengths[n] for n in b) - min(lengths[n] for n in b))
        together = _predict(model, asked, batch, targets)
        suits = True
        for k in sorted(range(len(batch)), key=lambda k: lengths[batch[k]])[:_TRIED]:
            (alone,) = _predict(model, asked, [batch[k]], targets)
            likely = alone.argmax(axis=-1)[:, None]
            change = np.abs(np.take_along_axis(alone - together[k], likely, axis=-1)).max()
            suits = suits and float(change) <= tolerance(model, float(np.abs(alone).max()))
        return suits

    if "right" not in trials.padding:
        trials.padding["right"] = learned(model, numbers, trial)
    return trials.padding["right"]
