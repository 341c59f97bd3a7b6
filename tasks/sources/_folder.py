"""Published data sets from a folder per benchmark: parquet files, ``docs.jsonl``, or the authors' own files; see docs."""

from __future__ import annotations

import base64
import binascii
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base import UserError, read_jsonl
from tasks.answers import files, formats
from tasks.questions import Pictures
from tasks.sources._rows import WITHOUT_IMAGE, Found, with_bytes

SPLITS = ("train", "validation", "val", "dev", "test", "testdev")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
#: The authors' own files, the first that is there; a folder stands for its files.
ORIGINALS = {
    "scienceqa": ("llava_test_CQM-A.json",),
    "gqa": ("testdev_balanced_questions.json",),
    "textvqa": ("TextVQA_0.5.1_val.json",),
    "pope": ("coco",),
    "mmbench": ("mmbench_dev_en_20231003.tsv", "mmbench_dev_20230712.tsv"),
    "mme": ("Your_Results",),
}


def named_split(table: Path) -> str | None:
    """Return the split that the hub's names say: ``train-00000-of-00001.parquet``, ``train/0000.parquet``; else None."""
    named = re.match(r"([a-z]+)-\d+-of-\d+", table.name)
    split = named.group(1) if named else table.parent.name
    return split if split in SPLITS else None


def read(benchmark: str, folder: Path, split: str) -> Found:
    """Return a benchmark's rows with their images.

    Args:
        benchmark: one of the six.
        folder: of the benchmark; parquet files that the hub would call another split's are left alone.
        split: the protocol's.

    Raises:
        UserError: when the folder or its question file is missing, or an image is missing or its name fits several files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: --data-root holds a folder per benchmark (docs/data_root.md)")
    tables = [path for path in sorted(folder.rglob("*.parquet")) if named_split(path) in (None, split)]
    if tables:
        return _parquet(benchmark, folder, tables)
    documents = sorted(folder.rglob("docs.jsonl"))
    if len(documents) > 1:
        raise UserError(f"{folder} holds {len(documents)} files docs.jsonl, expected one: {', '.join(map(str, documents))}")
    known = [path for name in ORIGINALS[benchmark] for path in sorted(folder.rglob(name))]
    if not documents and not known:
        raise UserError(f"{folder} holds no *.parquet, docs.jsonl or {' or '.join(ORIGINALS[benchmark])} (docs/data_root.md)")
    source = documents[0] if documents else known[0]
    rows, _ = formats.rows(benchmark, files.read(source))
    return _named(benchmark, folder, source, _with_tokens(benchmark, folder, rows))


def _parquet(benchmark: str, folder: Path, tables: Sequence[Path]) -> Found:
    """Return the rows of all parquet files that hold questions; those that hold images alone are joined by ``id``."""
    rows: list[dict[str, Any]] = []
    by_id: dict[str, Any] = {}
    for table in tables:
        for row in files.parquet(table):
            if "question" in row:
                rows.append(row)
            elif {"id", "image"} <= set(row):
                by_id[str(row["id"])] = row["image"]
            else:
                raise UserError(f"{table}: neither questions nor images by id, but the columns {', '.join(row)}")
    return with_bytes(benchmark, rows, by_id, str(folder))


def _with_tokens(benchmark: str, folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join TextVQA's OCR tokens from ``ocr_tokens.jsonl``, where there is one and the rows have none."""
    found = sorted(folder.rglob("ocr_tokens.jsonl")) if benchmark == "textvqa" else []
    if not found or all("ocr_tokens" in row for row in rows):
        return rows
    tokens = {str(row["question_id"]): row["ocr_tokens"] for row in read_jsonl(found[0])}
    lacking = [str(row["question_id"]) for row in rows if str(row["question_id"]) not in tokens]
    if lacking:
        raise UserError(f"{found[0]}: {len(lacking)} of {len(rows)} questions have no OCR tokens, first {lacking[0]!r}")
    return [{**row, "ocr_tokens": tokens[str(row["question_id"])]} for row in rows]


def _named(benchmark: str, folder: Path, source: Path, rows: list[dict[str, Any]]) -> Found:
    """Return rows that name their images: files below the folder, or base64 in MMBench's own table."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            by_stem[path.stem].append(path)
    pictures = Pictures()
    keys: dict[str, str] = {}
    encoded = {str(row["index"]): row["image"] for row in rows if benchmark == "mmbench" and _is_base64(row.get("image"))}
    shown: list[str | None] = []
    for number, row in enumerate(rows):
        name = _picture_name(benchmark, row)
        if name is None and benchmark in WITHOUT_IMAGE:
            shown.append(None)
            continue
        if name is None:
            raise UserError(f"{source}: row {number + 1} names no image")
        if name not in keys:
            held = _base64(name, encoded, source, number) if benchmark == "mmbench" and encoded else None
            keys[name] = pictures.add(held if held is not None else _file(name, by_stem, source))
        shown.append(keys[name])
    kept = [{**row, "image": row.get("image") if not encoded else str(row["index"])} for row in rows] if encoded else rows
    return Found(kept, shown, pictures, str(folder))


def _picture_name(benchmark: str, row: Mapping[str, Any]) -> str | None:
    """Return what a row calls its image, folders before it included."""
    columns = {"gqa": ("imageId", "image"), "textvqa": ("image_id", "image"), "mme": ("question_id",)}.get(
        benchmark, ("image",)
    )
    if benchmark == "textvqa" and isinstance(row.get("image"), str):
        columns = ("image",)
    value = next((row[name] for name in columns if row.get(name) is not None), None)
    return None if value is None else str(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, str) and (len(value) > 200 or value.isdecimal())


def _base64(name: str, encoded: Mapping[str, str], source: Path, number: int) -> bytes:
    """Return the image of a table's cell; a cell that is a number stands for the image of the row of that index."""
    text = encoded.get(name, name) if name.isdecimal() else name
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{source}: row {number + 1}: the image is not base64 ({error})") from error


def _file(name: str, by_stem: Mapping[str, Sequence[Path]], source: Path) -> Path:
    """Return the one file of that name whose path holds the folders that the name has, in any order between."""
    wanted = Path(name)
    known = [path for path in by_stem.get(_stem(wanted), ()) if set(wanted.parts[:-1]) <= set(path.parts[:-1])]
    if len(known) != 1:
        found = f"fits {len(known)} files ({known[0]}, {known[1]})" if known else "is not there"
        raise UserError(f"{source}: the image {name!r} {found}")
    return known[0]


def _stem(path: Path) -> str:
    return path.stem if path.suffix.lower() in SUFFIXES else path.name
