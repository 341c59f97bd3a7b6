"""Image files as training reads them: uint8 RGB, EXIF left alone, and a check that is quicker than reading them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

#: What PIL raises for damaged files, and for pixels without a known range (below).
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def is_inside(key: str) -> bool:
    """Say whether an image's key is a path below the image folder, without ``..``; the file need not exist."""
    path = PurePosixPath(key)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in key


def fault(path: Path) -> tuple[str | None, int]:
    """Decode a file and return what is wrong with it, in one line without its path, or None; and how many pixels it has.

    JPEGs are decoded at an eighth of their size, which reads all of their bytes and so finds truncated ones.
    """
    try:
        with Image.open(path) as picture:
            pixels = picture.width * picture.height
            picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))
            picture.load()
            _known(picture)
    except DAMAGED as error:
        return reason(path, error), 0
    return None, pixels


def read(path: Path) -> NDArray[np.uint8]:
    """Read a file as uint8 [H, W, 3].

    Alpha is dropped and palettes, grey, CMYK and YCbCr become RGB, as LLaVA's ``Image.open(...).convert("RGB")`` does; 16-bit
    grey keeps its high byte (PIL's own conversion would clip it to white). Rotation that EXIF asks for is not applied, as in
    LLaVA and in the evaluation.

    Raises:
        OSError, SyntaxError, ValueError, ...: for a file that is missing, truncated or no image; see :func:`reason`.
    """
    with Image.open(path) as picture:
        picture.load()
        if picture.mode.startswith("I"):
            _known(picture)
            values = np.asarray(picture, dtype=np.int64) >> 8
            return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)
        _known(picture)
        if picture.mode == "P" and "transparency" in picture.info:
            return np.asarray(picture.convert("RGBA").convert("RGB"), dtype=np.uint8)
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def _known(picture: Image.Image) -> None:
    """Refuse pixels whose range the file does not say: 32-bit integers and floats."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):  # older PIL opens 16-bit PNGs as "I"
        raise ValueError(f"{picture.format} with 32-bit pixels of unknown range")


def reason(path: Path, error: Exception) -> str:
    """Return what is wrong with a file in one line, without its path, so that it reads the same wherever the files lie."""
    if not path.exists():
        return "is not there"
    if path.is_dir():
        return "is a folder"
    if path.stat().st_size == 0:
        return "is empty"
    if isinstance(error, UnidentifiedImageError):
        return "is no image that PIL knows"
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"cannot be read ({text.replace(str(path), path.name)})"
