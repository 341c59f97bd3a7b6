"""ScienceQA's training rows, one at a time, from the hub or a folder: in official columns, images encoded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base import UserError, read_json
from tasks.sources import _folder

#: The hub's parquet file of the training split, at the revision at which ``scienceqa@all`` reads the test split. It is named by
#: path because the data set's card leaves the split out (https://huggingface.co/datasets/lmms-lab/ScienceQA, README.md and
#: the file list of ScienceQA-FULL at that revision).
HUB = {"path": "lmms-lab/ScienceQA", "revision": "69dd4d6b67373d38f96a5badd5d24d0eb5bcdc50"}
HUB_FILES = "ScienceQA-FULL/{split}-*.parquet"
#: Rows of each split and how many of them show an image (lupantech/ScienceQA, README.md; derek-thomas/ScienceQA on the hub).
ROWS = {"train": 12_726, "validation": 4_241, "test": 4_241}
COLUMNS = ("question", "choices", "answer", "hint")
_ORIGINAL = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Encoded:
    """A row in official columns without its image, and the image's encoded bytes, or None."""

    row: dict[str, Any]
    image: bytes | None


def rows(split: str, data_root: Path | None) -> Iterator[Encoded]:
    """Yield the rows of a split, in order; one is in memory at a time.

    Args:
        split: ``train``, ``validation`` or ``test``.
        data_root: the folder with a folder ``scienceqa``, which holds either the hub's parquet files of the split
            (``train-00000-of-00001.parquet``, or any in a folder called ``train``), or the authors' ``problems.json`` with the
            images as ``train/ID/image.png``; at any depth. None: the hub.

    Raises:
        UserError: for an unknown split, or data that are not there or damaged.
    """
    if split not in ROWS:
        raise UserError(f"scienceqa has no split {split!r}; allowed: {', '.join(ROWS)}")
    if data_root is None:
        found = {**HUB, "data_files": {split: HUB_FILES.format(split=split)}}
        yield from _parquet(found, split, f"{HUB['path']} cannot be loaded from the hub", "Offline, give --data-root DIR")
        return
    folder = data_root / "scienceqa"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: --data-root holds a folder per benchmark (docs/data_root.md)")
    tables = [path for path in sorted(folder.rglob("*.parquet")) if _folder.named_split(path) == split]
    if tables:
        options: dict[str, Any] = {"path": "parquet", "data_files": {split: [str(path) for path in tables]}, "streaming": True}
        yield from _parquet(options, split, f"{tables[0]} cannot be read", "Download it again")
        return
    problems = sorted(folder.rglob("problems.json"))
    if len(problems) != 1:
        there = f"{len(problems)} files problems.json" if problems else f"no {split}-*.parquet and no problems.json"
        raise UserError(f"{folder} holds {there} for the {split} split (docs/data_root.md)")
    yield from _problems(problems[0], folder, split)


def _parquet(options: dict[str, Any], split: str, failed: str, remedy: str) -> Iterator[Encoded]:
    """Yield rows through ``datasets``: memory-mapped from its cache, or streamed from files."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_dataset(**options, split=split).cast_column("image", datasets.Image(decode=False))
        for number, row in enumerate(found):
            cell = row.pop("image")
            if isinstance(cell, Mapping) and cell.get("bytes") is None:
                raise ValueError(f"row {number} names an image and does not hold it")
            yield Encoded(_whole(row, str(options["path"]), number), None if cell is None else cell["bytes"])
    except (OSError, ValueError, RuntimeError, KeyError, DatasetsError) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(f"{failed} ({type(error).__name__}: {reason}). {remedy} (docs/data_root.md)") from error


def _whole(row: dict[str, Any], where: str, name: object) -> dict[str, Any]:
    """Return a row that has all columns that its prompt and its answer need."""
    lacking = [column for column in COLUMNS if column not in row]
    if lacking:
        raise UserError(f"{where}: row {name} lacks the column(s) {', '.join(lacking)}")
    return row


def _problems(path: Path, folder: Path, split: str) -> Iterator[Encoded]:
    """Yield rows of the authors' own file: an object of question id -> {question, choices, answer, hint, image, split}."""
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(row, dict) and "split" in row for row in found.values()):
        raise UserError(f"{path}: expected an object of question id -> {{question, choices, answer, hint, image, split}}")
    for name, row in found.items():
        if row["split"] != _ORIGINAL[split]:
            continue
        image = None
        if row.get("image"):
            image = _picture(folder, split, str(name), str(row["image"]), path)
        kept = {key: value for key, value in row.items() if key != "image"}
        yield Encoded(_whole({"pid": str(name), **kept}, str(path), name), image)


def _picture(folder: Path, split: str, name: str, image: str, source: Path) -> bytes:
    """Return the image of a question: ``SPLIT/ID/image.png``, beside the file or anywhere below the folder."""
    if not re.fullmatch(r"[\w-]+", name) or not re.fullmatch(r"[\w-]+\.\w+", image):
        raise UserError(f"{source}: question {name!r} has the image {image!r}; expected the name of a file")
    tail = Path(_ORIGINAL[split]) / name / image
    for start in (source.parent, source.parent / "images", folder, folder / "images"):
        if (start / tail).is_file():
            return (start / tail).read_bytes()
    raise UserError(f"{source}: question {name!r} shows {tail}, which is neither in {source.parent} nor in its folder images")
