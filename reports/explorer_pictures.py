"""Thumbnails of the sample explorer: small WebP files beside the page, and where the whole pictures lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from harness.base import UserError

#: Longest side of a thumbnail in pixels; a picture that is no larger keeps its size.
LONGEST = 224
#: Up to this many pixels a side, a picture is enlarged with hard edges.
PIXELATED = 128
FOLDER = "samples/pictures"

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Picture:
    """Width and height of the whole picture in pixels; ``place`` is the folder of the whole one as the page sees it."""

    width: int
    height: int
    place: str | None


def place_of(images: Path, page: Path, run: Path) -> str | None:
    """Return the path from the page's folder to ``images``; None where the page does not lie inside the run folder."""
    inside = page.resolve().is_relative_to(run.resolve())
    return Path(os.path.relpath(images.resolve(), page.resolve())).as_posix() if inside else None


def from_files(keys: Iterable[str], images: Path, page: Path, place: str | None) -> dict[str, Picture]:
    """Write a thumbnail for every ``images/KEY.png`` that is there and return what was found.

    Raises:
        UserError: naming a picture that cannot be read, or a key that is no file name.
    """
    found = {}
    for key in keys:
        path = images / f"{_checked(key, images)}.png"
        if not path.is_file():
            continue
        try:
            with Image.open(path) as opened:
                width, height = opened.size
                target = _target(page, key)
                if not target.is_file():  # keys are digests of the content
                    _save(opened.convert("RGB"), target)
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{path} is damaged: not readable as an image ({error}). Remove it and run again") from error
        found[key] = Picture(width, height, place)
    return found


def from_arrays(keys: Iterable[str], arrays: Mapping[str, Any], page: Path, source: Path) -> dict[str, Picture]:
    """Write a thumbnail for every key of ``arrays``, uint8 [height, width, 3]; ``source`` names the file in errors."""
    found = {}
    for key in keys:
        if key not in arrays:
            continue
        pixels = np.asarray(arrays[_checked(key, source)])
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UserError(f"{source}: picture {key!r} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W, 3]")
        target = _target(page, key)
        if not target.is_file():
            _save(Image.fromarray(pixels), target)
        found[key] = Picture(pixels.shape[1], pixels.shape[0], None)
    return found


def _checked(key: str, source: Path) -> str:
    """A key becomes a file name: one that could leave the folder is refused."""
    if not _SAFE.fullmatch(key):
        raise UserError(f"{source}: picture key {key!r} is no file name (letters, digits, '.', '_' and '-')")
    return key


def _target(page: Path, key: str) -> Path:
    return page / FOLDER / f"{key}.webp"


def _save(picture: Image.Image, target: Path) -> None:
    if max(picture.size) > LONGEST:
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC, reducing_gap=2.0)
    target.parent.mkdir(parents=True, exist_ok=True)
    # renamed when whole, but not synced to the disk one by one: a thousand syncs take longer than all else of the page
    unfinished = target.with_suffix(".tmp")
    picture.save(unfinished, format="WEBP", quality=85, method=0)
    unfinished.replace(target)
