"""The published benchmarks: from a folder per benchmark (``docs/data_root.md``), else from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base import UserError
from tasks import answers
from tasks.questions import QuestionSet
from tasks.sources import _folder, _hub


def load(
    benchmark: str,
    split: str,
    *,
    name: str,
    dataset: Mapping[str, Any],
    keep: str | None = None,
    data_root: str | None = None,
) -> QuestionSet:
    """Return a published benchmark's questions with their images, as :class:`tasks.Gold`.

    Args:
        benchmark: one of the six.
        split: the protocol's; for training rows see :func:`tasks.training.stream`.
        name: of the protocol, for messages.
        dataset: :class:`tasks.catalogue.Dataset` as a mapping.
        keep: the protocol's rule for rows that count.
        data_root: folder that holds a folder per benchmark; null = the hub.

    Raises:
        UserError: for another split, or data that are not there, damaged, or without an image that a question shows.
    """
    if split != dataset["split"]:
        raise UserError(f"{name}: only the split {dataset['split']!r} of {dataset['id']} is read, not {split!r}")
    found = _hub.read(benchmark, dataset) if data_root is None else _folder.read(benchmark, Path(data_root) / benchmark, split)
    return answers.assemble(benchmark, name, keep, found.rows, found.origin, shown=found.shown, pictures=found.pictures)
