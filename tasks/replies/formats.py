"""Files of replies as rows of named fields, whatever wrote them. What a field means is :mod:`tasks.replies.fields`'s business.

A file is recognised by its content, never by its name: JSON lines, one JSON value, or a table with a header (tabs or
commas), or MME's result files (no header: image, question, gold, reply, separated by tabs).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness.base import UserError
from tasks.replies.fields import IDS, REPLIES

#: MME's result files (eval_tool of BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation).
MME_COLUMNS = ("image", "question", "gold", "reply")
_SHOWN = 3


@dataclass(frozen=True)
class Raw:
    """One row of a file: its fields, and where it stands ("replies.jsonl, line 3")."""

    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class File:
    """A file of replies.

    Attributes:
        kind: "JSON lines", "JSON", "table" or "MME results".
        rows: in the file's order.
        columns: the names of a table's header or of all objects' fields, in order of appearance.
    """

    kind: str
    rows: Sequence[Raw]
    columns: tuple[str, ...]


def read(path: Path) -> File:
    """Read a file, or a folder of MME result files.

    Raises:
        UserError: no such file, nothing in it, not UTF-8, or malformed lines, which are named.
    """
    if path.is_dir():
        return _mme_folder(path)
    if not path.is_file():
        raise UserError(f"--replies {path} does not exist; name a file, or the folder of MME's result files")
    text = _text(path)
    if not text.strip():
        raise UserError(f"{path} is empty: it holds no replies")
    first = text.lstrip()[0]
    if first == "[" or (first == "{" and not _is_lines(text)):
        return _collected("JSON", _json(path, text))
    if first == "{":
        return _collected("JSON lines", _lines(path, text))
    if _is_mme(text):
        return _collected("MME results", _mme(path, text))
    return _collected("table", _table(path, text))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


def _collected(kind: str, rows: Sequence[Raw]) -> File:
    return File(kind, rows, tuple(dict.fromkeys(str(name) for row in rows for name in row.fields)))


def refuse(path: Path, found: Sequence[tuple[int, str]]) -> NoReturn:
    """Raise the error that names malformed lines as (line, what is wrong)."""
    named = "; ".join(f"line {number}: {why}" for number, why in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise UserError(f"{path} holds {len(found)} malformed line(s): {named}{more}")


# ---- JSON ------------------------------------------------------------------------------------------------------------------


def _is_lines(text: str) -> bool:
    """Say whether a text that starts with "{" is JSON lines: one object per line, or a first line that no JSON value spans."""
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return lines[0].rstrip().endswith("}") or len(lines) == 1 or lines[1].lstrip().startswith("{")
    return len(lines) == 1 and not _is_mapping(value)


def _is_mapping(value: Any) -> bool:
    """Say whether a JSON object maps ids to replies, or holds a list of rows, instead of being a row itself."""
    if not isinstance(value, dict) or not value:
        return False
    if any(_is_rows(part) for part in value.values()):
        return True
    return all(isinstance(part, str) for part in value.values()) and not any(name in value for name in (*IDS, *REPLIES))


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, dict) for row in value)


def _lines(path: Path, text: str) -> list[Raw]:
    rows: list[Raw] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_no_constant)
        except (json.JSONDecodeError, RecursionError) as error:
            bad.append((number, f"not valid JSON ({getattr(error, 'msg', 'nested too deeply')})"))
            continue
        if isinstance(value, dict):
            rows.append(Raw(f"{path}, line {number}", value))
        else:
            bad.append((number, f"expected one JSON object, got {type(value).__name__}"))
    if bad:
        refuse(path, bad)
    return rows


def _no_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no JSON value", name, 0)


def _json(path: Path, text: str) -> list[Raw]:
    """Read a list of rows, an object that holds one such list (its ``samples``), or an object that maps ids to replies."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{place}: not valid JSON ({getattr(error, 'msg', 'nested too deeply')})") from error
    if isinstance(value, dict):
        lists = {name: part for name, part in value.items() if _is_rows(part)}
        if len(lists) > 1:
            raise UserError(f"{path} holds several lists of rows ({', '.join(lists)}); keep the one with the replies")
        if lists:
            value = next(iter(lists.values()))
        elif _is_mapping(value):
            return [Raw(f"{path}, entry {name!r}", {"id": name, "reply": reply}) for name, reply in value.items()]
        else:
            value = [value]
    rows: list[Raw] = []
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, entry {number}: expected one JSON object, got {type(row).__name__}")
        rows.append(Raw(f"{path}, entry {number}", row))
    if not rows:
        raise UserError(f"{path} is empty: it holds no replies")
    return rows


# ---- tables ----------------------------------------------------------------------------------------------------------------


def _table(path: Path, text: str) -> list[Raw]:
    """Read CSV or TSV with a header; a quoted field may hold line ends."""
    head = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in head else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # its default would refuse long replies
    rows: list[Raw] = []
    bad: list[tuple[int, str]] = []
    names: list[str] = []
    line = 0
    try:
        for fields in reader:
            start, line = line + 1, reader.line_num
            if not fields:
                continue
            if not names:
                names = [field.strip() for field in fields]
                _check_header(path, names, {*IDS, *REPLIES})
            elif len(fields) != len(names):
                bad.append((start, f"{len(fields)} fields, the header has {len(names)}"))
            else:
                rows.append(Raw(f"{path}, line {start}", dict(zip(names, fields, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a valid table ({error})") from error
    if bad:
        refuse(path, bad)
    if not rows:
        raise UserError(f"{path} holds a header and no replies")
    return rows


def _check_header(path: Path, names: Sequence[str], known: Iterable[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}, line 1: the header names {twice[0]!r} twice")
    if not set(names) & set(known):
        raise UserError(
            f"{path}, line 1: neither JSON, nor MME's four tab-separated fields, nor a table whose header names a reply; "
            f"known columns: {', '.join(sorted(known))}; found: {', '.join(name[:40] for name in names[:6])}"
        )


# ---- MME's result files ----------------------------------------------------------------------------------------------------


def _is_mme(text: str) -> bool:
    """Say whether a headerless table is one of MME's: its third field is a gold Yes or No."""
    fields = next(line for line in text.split("\n") if line.strip()).split("\t")
    return len(fields) in (3, 4) and fields[2].strip().lower() in ("yes", "no")


def _mme(path: Path, text: str) -> list[Raw]:
    """Read one category's results; the file's name is the category. A reply that spans lines or holds tabs is malformed."""
    rows: list[Raw] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != len(MME_COLUMNS):
            bad.append((number, f"{len(fields)} tab-separated field(s), expected 4: image, question, gold, reply"))
        else:
            row = dict(zip(MME_COLUMNS, fields, strict=True))
            rows.append(Raw(f"{path}, line {number}", {"category": path.stem, **row}))
    if bad:
        refuse(path, bad)
    return rows


def _mme_folder(folder: Path) -> File:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"{folder} holds no *.txt file; a folder of replies is MME's: one result file per category")
    return _collected("MME results", [row for path in files for row in _mme(path, _text(path))])
