"""Files and folders as plain values: what a format recognises."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base import UserError, json_lines

csv.field_size_limit(2**31 - 1)  # MMBench's TSV holds an image in base64 in every row
_TABLES = {".tsv": "\t", ".csv": ","}


@dataclass(frozen=True)
class Content:
    """A file or folder, read.

    Attributes:
        path: what was read.
        rows: of a table (JSON lines, CSV, TSV, parquet) or a JSON list: one dict per row; else None.
        value: of a JSON object: that object; else None.
        parts: of a folder: file name without suffix -> its content, one level deep; empty for a file.
        lines: of a text file that is none of these: (line number, tab-separated fields).
    """

    path: Path
    rows: list[dict[str, Any]] | None = None
    value: dict[str, Any] | None = None
    parts: dict[str, Content] = field(default_factory=dict)
    lines: list[tuple[int, list[str]]] | None = None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _json(path: Path, text: str) -> Content:
    """Return a JSON file's content, or that of JSON lines in a file called ``.json`` (POPE's labels are)."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as whole:
        if "\n{" not in text:
            raise UserError(f"{path}: not valid JSON ({whole.msg}, line {whole.lineno})") from whole
        return Content(path, rows=json_lines(path, text.split("\n")))  # not splitlines: U+2028 may stand inside a string
    if isinstance(value, dict):
        return Content(path, value=value)
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return Content(path, rows=value)
    raise UserError(f"{path}: expected a JSON object or a list of objects, got {type(value).__name__}")


def _table(path: Path, text: str, separator: str) -> list[dict[str, Any]]:
    """Return a table's rows; an empty cell is None."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header = next(reader, [])
    if not header or len(set(header)) != len(header):
        raise UserError(f"{path}: the first line must name each column once, got {', '.join(header) or 'nothing'}")
    rows = []
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(header):
            raise UserError(f"{path}, line {reader.line_num}: {len(fields)} fields, but the header names {len(header)} columns")
        rows.append({name: value if value != "" else None for name, value in zip(header, fields, strict=True)})
    return rows


def parquet(path: Path, skip: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return a parquet file's rows without the columns in ``skip``."""
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in opened.schema_arrow.names if name not in skip]
        rows: list[dict[str, Any]] = opened.read(columns=columns).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(f"{path}: cannot be read as parquet ({reason})") from error
    return rows


def read(path: Path) -> Content:
    """Return the content of a file, or of a folder's files.

    Raises:
        UserError: for a path that does not exist, an empty file or folder, or a damaged file, naming the line.
    """
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in (".json", ".jsonl", ".txt"))
        if not inside:
            raise UserError(f"{path} holds no .json, .jsonl or .txt file")
        return Content(path, parts={p.stem: read(p) for p in inside})
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".parquet":
        return Content(path, rows=parquet(path, skip=("image",)))
    text = _text(path)
    if not text.strip():
        raise UserError(f"{path} is empty")
    if path.suffix in _TABLES:
        return Content(path, rows=_table(path, text, _TABLES[path.suffix]))
    if path.suffix == ".jsonl":
        return Content(path, rows=json_lines(path, text.split("\n")))  # not splitlines: U+2028 may stand inside a string
    if text.lstrip()[0] in "[{":
        return _json(path, text)
    return Content(path, lines=[(n, line.split("\t")) for n, line in enumerate(text.split("\n"), 1) if line.strip()])
