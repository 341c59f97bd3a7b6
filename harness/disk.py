"""A full disk: told from other failures, and said in one line with what to do."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

_SHORT = 16e6
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: How libraries say it that drop the system's number: safetensors and Arrow; SQLite; NumPy's save; torch's save.
_WORDS = re.compile(
    r"no space left on device|disk quota exceeded|database or disk is full|\d+ requested and \d+ written"
    r"|inline_container.*unexpected pos|PytorchStreamWriter failed writing",
    re.IGNORECASE,
)


def is_full(error: BaseException | None) -> bool:
    """Say whether an error, or what it was raised from, is a disk without room."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if _WORDS.search(str(error)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def is_short(root: Path) -> bool:
    """Say whether next to nothing is free on the disk of ``root``."""
    return shutil.disk_usage(root).free < _SHORT


def line(root: Path, what: str) -> str:
    """Return the one line for ``what`` (a stage, or the run itself) that met a full disk; ``root`` is the run folder."""
    free = shutil.disk_usage(root).free
    return (
        f"no space left on the disk of {root} for {what} ({free / 1e6:,.0f} MB free now). Make room there, or bound the caches"
        " with --cache-gb, then run the same command again: what is complete is kept"
    )
