"""Features on disk: one row an image, memory-mapped, found by the image's name or by the content of its pixels.

A folder holds ``features.npy`` [I, n, C] (bfloat16 as uint16), ``names.json`` (I names), ``content.npy`` uint8 [I, 32]
(:func:`students.vision.keys.fingerprint`, where images are looked up by content) and, written last, ``meta.json``: version,
key, dtype, shape. It holds no times, so that the same tower and images give the same files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import UserError, open_array, read_json, write_json
from students.data.mapped import REMAKE
from students.vision import keys

if TYPE_CHECKING:
    from students.models._base import Adapter

VERSION = 1
META, FEATURES, NAMES, CONTENT = "meta.json", "features.npy", "names.json", "content.npy"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_BATCH = 64


class Features(Mapping[str, Tensor]):
    """Stored features by name: [n, C] each, on the CPU, read from disk when they are asked for. Threads may share it.

    Args:
        folder: what :func:`write` made.
        expected: the key of the tower in whose place they stand.

    Raises:
        UserError: naming the file that is missing or damaged.
        Unfit: when they are another tower's.
    """

    def __init__(self, folder: Path, expected: dict[str, str]) -> None:
        meta = read_json(folder / META) if (folder / META).is_file() else None
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise UserError(f"{folder} holds no features of version {VERSION} ({META}). {REMAKE}")
        apart = keys.difference(expected, meta["key"])
        if apart is not None:
            raise Unfit(apart)
        self.folder, self.dtype = folder, _DTYPES[meta["dtype"]]
        self._rows = self._array(FEATURES, tuple(meta["shape"]))
        self.names: tuple[str, ...] = tuple(read_json(folder / NAMES)) if (folder / NAMES).is_file() else ()
        self._index = {name: row for row, name in enumerate(self.names)}
        if len(self._index) != len(self._rows):
            raise UserError(f"{folder / NAMES} is missing or does not fit {len(self._rows)} images. {REMAKE}")
        self._by_content: dict[bytes, int] = {}
        if (folder / CONTENT).is_file():
            content = self._array(CONTENT, (len(self._rows), 32))
            self._by_content = {row.tobytes(): number for number, row in enumerate(content)}

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        path = self.folder / name
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="r" if shape[0] else None)  # nothing cannot be mapped
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path} is missing or truncated ({error}). {REMAKE}") from error
        if found.shape != shape:
            raise UserError(f"{path} has shape {found.shape}, {META} says {shape}. {REMAKE}")
        return found

    def __getitem__(self, name: str) -> Tensor:
        return self._row(self._index[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def of(self, content: bytes) -> Tensor | None:
        """Return the features of pixels by their fingerprint, or None where they are not stored."""
        row = self._by_content.get(content)
        return None if row is None else self._row(row)

    def _row(self, row: int) -> Tensor:
        found = torch.from_numpy(np.array(self._rows[row]))  # a copy: the map is read-only, and torch would share it
        return found if found.dtype == self.dtype else found.view(self.dtype)


class Unfit(UserError):
    """Features that are another tower's; its text says what differs."""


def batches(count: int, most: int = _BATCH) -> list[tuple[int, int]]:
    """Cut ``count`` images into batches of at most ``most``, none of one image alone where there are two or more.

    Convolutions of one image round otherwise than those of several, whose features do not depend on how many they are.
    """
    cuts = [*range(0, count, most), count]
    if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
        cuts[-2] -= 1
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def write(
    adapter: Adapter,
    names: Sequence[str],
    pixels: Callable[[Sequence[str]], Tensor],
    out: Path,
    progress: Callable[[int, int], None],
    *,
    half: bool = False,
    content: bool = False,
) -> None:
    """Run the tower once over images and write what the projector reads of them into ``out``.

    Args:
        adapter: the model, where it will run.
        names: of the images, each once; none gives a store without rows.
        pixels: preprocesses images: names to [I, 3, H, W] on the CPU.
        out: folder.
        progress: called with finished and all images.
        half: compute under autocast to bfloat16, as a training with ``precision: bf16`` does.
        content: let images be found by the content of their pixels too.

    Raises:
        UserError: for a model whose tower cannot be computed once.
        ValueError: for a name that comes twice.
        FloatingPointError: naming images of which the tower makes something that is not a number.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"{len(names)} names of images, {len(set(names))} of them different")
    key = keys.key(adapter, half)
    device = next(adapter.model.parameters()).device
    out.mkdir(parents=True, exist_ok=True)
    rows: Any = None
    prints = np.zeros((len(names), 32), np.uint8)
    dtype, bad = torch.float32, []
    for start, end in batches(len(names)):
        given = pixels(names[start:end])
        if content:
            prints[start:end] = [np.frombuffer(keys.fingerprint(each), np.uint8) for each in given]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            found = adapter.features(given.to(device)).cpu()
        if rows is None:
            dtype = found.dtype
            kind = np.uint16 if dtype == torch.bfloat16 else found.numpy().dtype
            rows = open_array(out / FEATURES, kind, (len(names), *found.shape[1:]))
        finite = found.isfinite().flatten(1).all(1).tolist()
        bad += [name for name, fine in zip(names[start:end], finite, strict=True) if not fine]
        rows[start:end] = (found.view(torch.uint16) if dtype == torch.bfloat16 else found).numpy()
        progress(end, len(names))
    if bad:
        raise FloatingPointError(f"the tower is not finite on {len(bad)} image(s): {', '.join(bad[:5])}")
    if rows is None:
        rows = np.zeros((0, 0, 0), np.float32)
        np.save(out / FEATURES, rows)
    else:
        rows.flush()
    if content:
        np.save(out / CONTENT, prints)
    write_json(out / NAMES, list(names))
    kind_name = str(dtype).removeprefix("torch.")
    write_json(out / META, {"version": VERSION, "key": key, "dtype": kind_name, "shape": list(rows.shape)})
