"""Samples as tokens, and their pictures decoded, kept on disk: made once, memory-mapped by whoever trains on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, open_array, read_json, write_json
from students.data.pack import Encoded, Ids
from students.data.samples import TrainingSet

#: Raise when the files mean something else.
VERSION = 1
_TEXTS = ("prompts", "answers", "clean")
_META = "meta.json"


class Ragged(Sequence[Ids]):
    """Arrays of different lengths in one: ``flat`` integers [T], ``offsets`` int64 [S + 1]; items are int64 arrays."""

    def __init__(self, flat: NDArray[Any], offsets: NDArray[np.int64]) -> None:
        self._flat, self._offsets = flat, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Ids: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Ids]: ...

    def __getitem__(self, index: int | slice) -> Ids | Sequence[Ids]:
        if isinstance(index, slice):
            return tuple(self[k] for k in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start = index % len(self)
        return np.asarray(self._flat[self._offsets[start] : self._offsets[start + 1]], dtype=np.int64)

    def __iter__(self) -> Iterator[Ids]:
        whole = np.asarray(self._flat, dtype=np.int64)  # read once, in order, instead of once per item
        return iter(np.split(whole, self._offsets[1:-1])) if len(self) else iter(())


class Pictures(Mapping[str, NDArray[np.uint8]]):
    """Decoded pictures by key: views uint8 [height, width, 3] of one array ``flat`` [bytes]."""

    def __init__(self, keys: Sequence[str], shapes: Sequence[Sequence[int]], flat: NDArray[np.uint8]) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes]
        ends = np.cumsum([0, *sizes]).tolist()
        self._where = {key: (ends[k], ends[k + 1], tuple(shapes[k])) for k, key in enumerate(keys)}
        self._flat = flat

    def __getitem__(self, key: str) -> NDArray[np.uint8]:
        start, end, shape = self._where[key]
        return self._flat[start:end].reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def save(folder: Path, data: TrainingSet, encoded: Encoded) -> None:
    """Write tokens and pictures into ``folder``, which must not hold any.

    Files: prompts, answers and clean ``.npy`` int32 [tokens] with ``.offsets.npy`` int64 [S + 1]; prefix.npy int64 [S];
    pictures.npy uint8 [bytes]; meta.json (version, ids, image key of each sample, padding token, keys and shapes of pictures,
    tokens of each text).

    Raises:
        OSError: when the disk has not the room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name in _TEXTS:
        pieces = getattr(encoded, name)
        offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
        _fill(folder / f"{name}.npy", np.int32, pieces, int(offsets[-1]))
        np.save(folder / f"{name}.offsets.npy", offsets)
        counts[name] = int(offsets[-1])
    np.save(folder / "prefix.npy", np.array(encoded.prefix, np.int64))
    keys = sorted(data.images)
    pictures = [np.asarray(data.images[key]) for key in keys]
    _fill(folder / "pictures.npy", np.uint8, (each.reshape(-1) for each in pictures), sum(each.size for each in pictures))
    facts = {
        "version": VERSION,
        "ids": [sample.id for sample in data],
        "images": list(encoded.images),
        "pad": encoded.pad,
        "keys": keys,
        "shapes": [list(each.shape) for each in pictures],
        "tokens": counts,
    }
    write_json(folder / _META, facts)


def _fill(path: Path, dtype: Any, pieces: Any, size: int) -> None:
    if size == 0:  # nothing can be mapped then
        np.save(path, np.zeros(0, dtype))
        return
    array, used = open_array(path, dtype, (size,)), 0
    for piece in pieces:
        array[used : used + len(piece)] = piece
        used += len(piece)
    array.flush()


def load_pictures(folder: Path) -> Pictures:
    """Map the pictures that :func:`save` wrote.

    Raises:
        UserError: naming a file that is missing, cut off or of another version.
    """
    meta = _meta(folder)
    flat = _array(folder / "pictures.npy", sum(int(np.prod(shape)) for shape in meta["shapes"]))
    return Pictures(meta["keys"], meta["shapes"], flat)


def load(folder: Path, ids: Sequence[str]) -> Encoded:
    """Map the tokens that :func:`save` wrote.

    Args:
        folder: where.
        ids: the samples that they must be of, in order.

    Raises:
        UserError: naming a file that is missing, cut off, of another version or of other samples.
    """
    meta = _meta(folder)
    if meta["ids"] != list(ids):
        raise UserError(f"{folder} holds the tokens of other samples. Remove it and run the same command again")
    texts = {}
    for name in _TEXTS:
        offsets = _array(folder / f"{name}.offsets.npy", len(ids) + 1)
        texts[name] = Ragged(_array(folder / f"{name}.npy", meta["tokens"][name]), np.asarray(offsets))
    prefix = tuple(_array(folder / "prefix.npy", len(ids)).tolist())
    return Encoded(texts["prompts"], texts["answers"], texts["clean"], prefix, tuple(meta["images"]), meta["pad"])


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / _META
    if not path.is_file():
        raise UserError(f"{path} is missing. Remove {folder} and run the same command again")
    meta: dict[str, Any] = read_json(path)
    if meta.get("version") != VERSION:
        raise UserError(
            f"{path} has version {meta.get('version')!r}, this program reads {VERSION}. Remove {folder} and run again"
        )
    return meta


def _array(path: Path, size: int) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r" if size else None)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is missing or cut off ({error}). Remove it and run the same command again") from error
    if len(found) != size:
        raise UserError(
            f"{path} holds {len(found)} values, its meta.json says {size}. Remove it and run the same command again"
        )
    return found
