"""Where a benchmark writes; no torch here, so that a wrong ``--out`` is said at once."""

from __future__ import annotations

from pathlib import Path

from harness.base import UserError


def check(out: Path) -> None:
    """Make the folder of a result now, and not after minutes of measuring.

    Raises:
        UserError: for a name that does not end in .json, or a folder that cannot be made.
    """
    if out.suffix != ".json":
        raise UserError(f"--out is {str(out)!r}; allowed: a file that ends in .json")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out is {str(out)!r}, whose folder cannot be made ({error.strerror})") from error
