"""Rows of conversations, padded into one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import UserError
from students.data.conversations import Row
from students.data.pack import Batch

Side = Literal["right", "left"]


def collate(
    rows: Sequence[Row],
    indices: Sequence[int],
    *,
    pad: int,
    image_token: int,
    join: Callable[[Sequence[Row]], dict[str, Tensor]],
    side: Side = "right",
) -> Batch:
    """Pad rows into one :class:`Batch` of one sample a row.

    Args:
        rows: R rows.
        indices: their numbers in the corpus.
        pad: the padding token's id.
        image_token: the id of tokens that stand for image features.
        join: makes the model's image inputs of the rows' pixels; called where a row has an image.
        side: where the padding goes.

    Returns:
        A batch whose ``attention_mask`` is bool [R, L] and ``position_ids`` None. ``text`` are a row's tokens after its first
        image (after the first token, where it has none) that are no image tokens, without the last token, which nothing
        follows: for one question about one image, what packed rows have.

    Raises:
        UserError: for no rows, or a row without supervised tokens.
    """
    if not rows or len(rows) != len(indices):
        raise UserError(f"a batch of {len(rows)} rows with {len(indices)} numbers; needed: equally many, one or more")
    width = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), width), pad, np.int64)
    mask = np.zeros((len(rows), width), np.bool_)
    segment = np.full((len(rows), width), -1, np.int64)
    found: dict[str, list[Any]] = {name: [] for name in ("row", "column", "labels", "sample", "prompt_column", "text", "image")}
    shown = 0
    for number, row in enumerate(rows):
        length, places = len(row.ids), np.flatnonzero(row.supervised)
        if not len(places) or places[0] == 0:
            raise UserError(
                f"row {indices[number]} has no supervised token after its first token, so nothing can be learnt of it"
            )
        start = width - length if side == "left" else 0
        ids[number, start : start + length] = row.ids
        mask[number, start : start + length] = True
        own = _own(row, image_token)
        segment[number, start : start + length] = 0
        segment[number, start + own] = 1
        found["row"].append(np.full(len(places), number))
        found["column"].append(start + places - 1)
        found["labels"].append(row.ids[places])
        found["prompt_column"].append(start + places[0] - 1)
        found["text"].append(start + own)
        found["image"].append(shown if row.pictures else -1)
        shown += row.pictures
    joined = {name: torch.from_numpy(np.concatenate(found[name])) for name in ("row", "column", "labels")}
    counts = tuple(len(columns) for columns in found["text"])
    inputs = join(rows) if shown else {}
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=None,
        attention_mask=torch.from_numpy(mask),
        pixel_values=inputs.pop("pixel_values", None),
        **joined,
        clean=joined["labels"].clone(),
        sample=joined["row"].clone(),
        prompt_row=torch.arange(len(rows)),
        prompt_column=torch.tensor(found["prompt_column"]),
        image=torch.tensor(found["image"]),
        segment=torch.from_numpy(segment),
        question=torch.ones(len(rows), dtype=torch.int64),
        text=torch.from_numpy(_beside(found["text"], max(counts))),
        text_tokens=counts,
        indices=tuple(indices),
        pictures=tuple(row.pictures for row in rows),
        inputs=inputs,
        padded=side == "right" and not bool(mask.all()),
    )


def _beside(columns: Sequence[NDArray[np.int64]], width: int) -> NDArray[np.int64]:
    """Put R lists of columns into one table [R, width], filled up with -1."""
    table = np.full((len(columns), width), -1, np.int64)
    for target, own in zip(table, columns, strict=True):
        target[: len(own)] = own
    return table


def _own(row: Row, image_token: int) -> NDArray[np.int64]:
    """Positions of the row's own text: after its first image, no image tokens, without the last."""
    places = row.ids == image_token
    after = 1
    if places.any():
        first = int(np.flatnonzero(places)[0])
        rest = np.flatnonzero(~places[first:])
        after = first + int(rest[0]) if len(rest) else len(places)
    columns: NDArray[np.int64] = np.flatnonzero(~places[after:-1]).astype(np.int64) + after
    return columns
