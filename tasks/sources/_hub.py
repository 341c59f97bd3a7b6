"""Published data sets from the Hugging Face hub, through the ``datasets`` library's cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.base import UserError
from tasks.sources._rows import Found, with_bytes

#: Where the images of a benchmark are another configuration of the same data set, joined by ``imageId``.
IMAGES = {"gqa": "testdev_balanced_images"}


def read(benchmark: str, dataset: Mapping[str, Any]) -> Found:
    """Return a data set's rows with their images.

    Args:
        benchmark: one of the six.
        dataset: id, config, split, revision.

    Raises:
        UserError: when the hub cannot be reached and the data set is not in the cache.
    """
    rows = _download(dataset, dataset["config"])
    by_id = {}
    if benchmark in IMAGES:
        by_id = {str(row["id"]): row["image"] for row in _download(dataset, IMAGES[benchmark])}
    revision = dataset["revision"]
    return with_bytes(benchmark, rows, by_id, dataset["id"] if revision is None else f"{dataset['id']}@{revision}")


def _download(dataset: Mapping[str, Any], config: str | None) -> list[dict[str, Any]]:
    """Return the rows of one configuration, images encoded."""
    import datasets

    try:
        found = datasets.load_dataset(dataset["id"], config, split=dataset["split"], revision=dataset["revision"])
        if "image" in found.column_names:
            found = found.cast_column("image", datasets.Image(decode=False))
        rows: list[dict[str, Any]] = found.to_list()
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"{dataset['id']} cannot be loaded from the hub ({type(error).__name__}: {reason}). "
            "Offline, give --data-root DIR with a folder per benchmark"
        ) from error
    return rows
