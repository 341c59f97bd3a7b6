"""Rows of a published data set with the images they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.base import UserError
from tasks.questions import Pictures

#: Benchmarks whose rows may have no image.
WITHOUT_IMAGE = {"scienceqa"}


@dataclass(frozen=True)
class Found:
    """Rows in official columns (``image``: its name, or None); per row the key of its image; where they come from."""

    rows: Sequence[dict[str, Any]]
    shown: Sequence[str | None]
    pictures: Pictures
    origin: str


def with_bytes(benchmark: str, rows: Sequence[Mapping[str, Any]], by_id: Mapping[str, Any], origin: str) -> Found:
    """Return rows whose ``image`` cell holds an encoded image, as the hub's parquet files do.

    Args:
        benchmark: says whether a row needs an image.
        rows: ``image`` is {bytes, path} or None; GQA's rows have none, but an ``imageId``.
        by_id: image cells by ``imageId``, for GQA.
        origin: for messages.

    Raises:
        UserError: for a row without its image.
    """
    pictures = Pictures()
    made, shown = [], []
    for number, row in enumerate(rows):
        cell = row.get("image")
        if cell is None and "imageId" in row:
            cell = by_id.get(str(row["imageId"]))
        encoded = cell.get("bytes") if isinstance(cell, Mapping) else None
        if encoded is None and benchmark not in WITHOUT_IMAGE:
            raise UserError(f"{origin}: row {number + 1} has no image")
        key = None if encoded is None else pictures.add(encoded)
        path = cell.get("path") if isinstance(cell, Mapping) else None
        made.append({**row, "image": None if key is None else path or key})
        shown.append(key)
    return Found(made, shown, pictures, origin)
