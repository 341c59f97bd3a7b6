"""Greedy decoding of one batch, with how near each reply came to another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Decoded:
    """What a batch of B prompts was answered with.

    Attributes:
        tokens: per row up to its first end token, which is included, or up to the limit.
        ended: per row whether an end token came.
        nearest: float32 [B], the smallest distance of the two largest logits at any token of the row.
        first: float32 [B], that distance at the first token.
        scale: the largest logit, in absolute value, of the first tokens.
    """

    tokens: list[list[int]]
    ended: list[bool]
    nearest: torch.Tensor
    first: torch.Tensor
    scale: float


class _Margins:
    """A logits processor that changes nothing and notes how far the two largest logits are apart, until a row ends."""

    def __init__(self, start: int, stop: torch.Tensor) -> None:
        self._start, self._stop = start, stop
        self.nearest = self.first = self.largest = self.live = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        top = scores.float().topk(2, dim=-1).values
        apart = top[:, 0] - top[:, 1]
        if input_ids.shape[1] == self._start:
            self.nearest = self.first = apart
            self.largest, self.live = top[:, 0].abs().max(), torch.ones_like(apart, dtype=torch.bool)
        else:
            self.live = self.live & ~torch.isin(input_ids[:, -1], self._stop)
            self.nearest = torch.where(self.live, torch.minimum(self.nearest, apart), self.nearest)
        return scores


def greedy(model: Any, inputs: dict[str, torch.Tensor], limit: int, stop: Sequence[int], pad: int) -> Decoded:
    """Answer a batch greedily; it ends with its last row.

    Args:
        model: a Hugging Face model that generates.
        inputs: of B prompts, on the model's device.
        limit: most new tokens.
        stop: end tokens.
        pad: what stands after them.
    """
    import transformers

    library: Any = transformers
    setting = library.GenerationConfig(
        max_new_tokens=limit, do_sample=False, num_beams=1, eos_token_id=list(stop), pad_token_id=pad, use_cache=True
    )
    start = inputs["input_ids"].shape[1]
    margins = _Margins(start, torch.tensor(list(stop), device=inputs["input_ids"].device))
    processors = library.LogitsProcessorList([margins])
    output = model.generate(**inputs, generation_config=setting, logits_processor=processors)[:, start:].tolist()
    tokens, ended = [], []
    for row in output:
        ends = [position for position, token in enumerate(row) if token in stop]
        tokens.append(row[: ends[0] + 1] if ends else row)
        ended.append(bool(ends))
    return Decoded(tokens, ended, margins.nearest.cpu(), margins.first.cpu(), float(margins.largest))
