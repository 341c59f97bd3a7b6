"""What a data set without a published revision held when it was first loaded; a later load that differs is an error.

One JSON file per data set in ``$HARNESS_PINS`` (default: ``$XDG_CACHE_HOME/beta-kd-bench/pins``): rows, digest, origin.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.base import UserError, read_json, write_json


def folder() -> Path:
    """Return where pins are kept."""
    given = os.environ.get("HARNESS_PINS")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "beta-kd-bench" / "pins"


def check(name: str, rows: int, digest: str, origin: str) -> None:
    """Record the data set called ``name`` at its first load, and compare with the record at every later one.

    Args:
        name: of the pinned data: benchmark, hub id, config, split, original or hub form.
        rows: number of rows.
        digest: of their content (SHA-256, hex).
        origin: where they were read from, for messages.

    Raises:
        UserError: when rows or digest differ from the record, naming both and the file to delete to accept the new data.
    """
    path = folder() / f"{quote(name, safe='@')}.json"
    found: dict[str, Any] = {"name": name, "rows": rows, "digest": digest, "origin": origin}
    if not path.is_file():
        write_json(path, found)
        return
    first = read_json(path)
    if not isinstance(first, dict) or not {"rows", "digest", "origin"} <= set(first):
        raise UserError(f"{path} is damaged: a pin holds rows, digest and origin. Remove it to pin the data anew")
    if (first["rows"], first["digest"]) != (rows, digest):
        raise UserError(
            f"{name}: {origin} holds {rows} rows with digest {digest[:16]}, but the first load ({first['origin']}) held "
            f"{first['rows']} rows with digest {str(first['digest'])[:16]}: scores would not be comparable. "
            f"Remove {path} to accept the new data"
        )
