"""The ground floor every room may import: errors, atomic writes, digests, near matches, the torchvision shim.

Nothing heavy is imported at module level: ``torch`` is only touched inside :func:`shim`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

#: Environment that keeps every library off the network. Set before transformers, datasets or lmms_eval are imported.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers draws a bar per loaded checkpoint otherwise
    "TOKENIZERS_PARALLELISM": "false",
}

_Model = TypeVar("_Model", bound=pydantic.BaseModel)
_torchvision_library: Any = None


class UserError(Exception):
    """Bad input. One line that names the value, what is allowed and the nearest match; the commands exit with code 2."""


class UnknownName(UserError, KeyError):
    """A name that no registry knows. Also a :class:`KeyError`, so that mapping-style callers can catch it."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Return up to ``n`` names of ``known`` that look like ``name``, best first."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """Build the error for an unknown ``kind`` called ``name``, with near matches and everything that is allowed."""
    options = sorted(known)
    close = nearest(name, options)
    hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return UnknownName(f"unknown {kind} {name!r}.{hint} Known: {', '.join(options) or 'none'}")


# ---- files -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` and rename it over ``target`` when the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600 files, which nobody else could read
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: JSON has no spelling for them."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; a damaged file is a :class:`UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: not valid JSON ({error}). Remove it and run the same command again") from error


def write_jsonl(target: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with atomic_path(target) as path, path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; a damaged line is a :class:`UserError` that names the file and the line."""
    with Path(path).open(encoding="utf-8") as file:
        return json_lines(path, file)


def json_lines(path: str | Path, lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the JSON object on each line that is not blank; errors as :func:`read_jsonl`, which name ``path``."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected one JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def remove(path: str | Path) -> None:
    """Delete a file or a folder, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_array(path: str | Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Create a ``.npy`` file of zeros and return it as a writable memory map ``dtype`` [shape]; flush it when it is full.

    Its whole space is taken at once: writing a memory map into a hole of a full disk would kill the process without a word.

    Raises:
        OSError: ENOSPC when the disk has not that much room; nothing is left at ``path`` then.
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    try:
        with Path(path).open("rb+") as file:
            size = os.fstat(file.fileno()).st_size
            # the system would fill the disk before it gives up, and whatever else writes there meanwhile would fail
            if size > shutil.disk_usage(Path(path).parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        del array
        Path(path).unlink()
        raise
    return array


# ---- digests ---------------------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: str | Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: str | Path, pattern: str = "**/*") -> str:
    """Return the SHA-256 (hex) over the relative names and bytes of the files below ``folder`` that match ``pattern``.

    Raises:
        UserError: when no file matches, because an empty digest would match every other empty folder.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.glob(pattern) if p.is_file())
    if not files:
        raise UserError(f"{folder} holds no file that matches {pattern!r}")
    return digest([[p.relative_to(folder).as_posix(), digest_file(p)] for p in files])


# ---- YAML with a schema ----------------------------------------------------------------------------------------------------


class Strict(pydantic.BaseModel):
    """Base of every schema here: unknown keys are errors, values cannot be changed after loading."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


def parse(schema: type[_Model], value: Any, source: str) -> _Model:
    """Check ``value`` against a pydantic ``schema``; ``source`` names where it came from in the error.

    Raises:
        UserError: naming the file, the field, what was given and, for an unknown key, the nearest known one.
    """
    try:
        return schema.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(top level)"
        if first["type"] == "extra_forbidden":
            close = nearest(str(first["loc"][-1]), schema.model_fields)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{source}: unknown field {field!r}.{hint} Known: {', '.join(schema.model_fields)}") from error
        # a rule between fields names them itself; its input is a whole section
        whole = first["type"] == "value_error" and isinstance(first["input"], dict)
        given = "" if whole or first["type"] == "missing" else f", got {first['input']!r}"
        raise UserError(f"{source}: field {field!r}: {first['msg'].removeprefix('Value error, ')}{given}") from error


def read_yaml(path: str | Path, schema: type[_Model]) -> _Model:
    """Read a YAML file and check it against a pydantic ``schema``; see :func:`parse` for the errors."""
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error})") from error
    return parse(schema, value, str(path))


# ---- the process -----------------------------------------------------------------------------------------------------------


def offline() -> None:
    """Keep Hugging Face libraries off the network in this process and its children; call before importing them."""
    os.environ.update(OFFLINE)


def shim() -> None:
    """Let ``import torchvision`` succeed beside a CPU torch. Does nothing beside a CUDA torch, or when called again.

    PyPI's torchvision is a CUDA build whose extension cannot load on CPU torch; ``import torchvision`` then dies with
    "operator torchvision::nms does not exist", and transformers' image classes with it. Declaring the two schemas that
    torchvision registers fakes for is enough: its Python part works, and ``ops.nms`` raises a clear error if called.
    """
    global _torchvision_library
    import torch

    if torch.version.cuda is not None or _torchvision_library is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # dropping the reference would undo it
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_library = library


def end_with_parent(code: int = 3) -> None:
    """End this process the moment the one that spawned it is gone, however that ended; an orphan must write nothing more.

    Args:
        code: the exit code; nobody is left to read it.
    """
    import multiprocessing
    import threading
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(code)

    if parent is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), name="watch-parent", daemon=True).start()
