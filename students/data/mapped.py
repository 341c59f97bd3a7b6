"""Arrays of a cache on disk, mapped and compared with what its meta.json says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError

#: What to do about a damaged cache.
REMAKE = "Remove the folder and run the same command again"


def mapped(folder: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map ``NAME.npy`` of a folder.

    Raises:
        UserError: naming the file where it is missing, cut off, or of another type or shape.
    """
    path = folder / f"{name}.npy"
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r" if shape[0] else None)  # nothing cannot be mapped
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is missing or cut off ({error}). {REMAKE}") from error
    if found.shape != shape or found.dtype != dtype:
        raise UserError(f"{path} is {found.dtype} {found.shape}, meta.json says {shape}. {REMAKE}")
    return found
