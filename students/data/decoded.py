"""Images of a corpus decoded, kept on disk: each made once, memory-mapped by whoever looks at it.

A folder holds ``pixels.npy`` uint8 [bytes], one picture after the other; ``offsets.npy`` int64 [I + 1], where each begins and
the last one ends; ``sides.npy`` int32 [I, 2] (height, width); ``names.json`` (I names) and, written last, ``meta.json``:
version, the corpus's digest, sizes. One that holds only ``why.json`` says why not more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, read_json, write_json
from students.data.conversations import UnreadableImage
from students.data.mapped import REMAKE, mapped

if TYPE_CHECKING:
    from students.data.conversations import Conversation, Corpus, Picture
    from students.data.corpus import IndexedCorpus

#: Raise when the files mean something else.
VERSION = 1
META, NAMES, WHY = "meta.json", "names.json", "why.json"
_ARRAYS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "pixels": (np.uint8, ()), "offsets": (np.int64, ()), "sides": (np.int32, (2,)),
}  # fmt: skip


class Decoded:
    """A corpus whose pictures are mapped, not decoded; implements :class:`students.data.conversations.Corpus`.

    Args:
        corpus: the rows.
        folder: what :func:`write` made.

    Attributes:
        why: how many pictures are stored, or why none is, in one line.

    Raises:
        UserError: naming the file that is missing, cut off, of another version or of another corpus.
    """

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder
        self.name, self.digest = corpus.name, corpus.digest
        self.lengths: NDArray[np.int32] = corpus.lengths
        self.shows: NDArray[np.int16] = corpus.shows
        self._index: dict[str, int] = {}
        if (folder / WHY).is_file():
            self.why = str(read_json(folder / WHY)["why"])
            return
        meta = read_json(folder / META) if (folder / META).is_file() else None
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise UserError(f"{folder} holds no pictures of version {VERSION} ({META}). {REMAKE}")
        if meta["rows"] != corpus.digest:
            raise UserError(f"{folder} holds the pictures of another corpus than {corpus.name!r} is now. {REMAKE}")
        arrays = {name: mapped(folder, name, dtype, tuple(meta["shapes"][name])) for name, (dtype, _) in _ARRAYS.items()}
        self._pixels, self._offsets, self._sides = (arrays[name] for name in _ARRAYS)
        names = read_json(folder / NAMES) if (folder / NAMES).is_file() else []
        if len(names) != len(self._sides) or self._offsets[-1] != len(self._pixels) or len(self._offsets) != len(names) + 1:
            raise UserError(f"{folder / NAMES} is missing or does not fit {len(self._sides)} pictures. {REMAKE}")
        self._index = {name: number for number, name in enumerate(names)}
        self.why = f"{len(names):,} pictures, decoded once"

    def __reduce__(self) -> tuple[type[Decoded], tuple[Corpus, Path]]:
        return (Decoded, (self.corpus, self.folder))

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> Conversation:
        return self.corpus[index]

    def picture(self, key: str) -> Picture:
        """Read one image as uint8 [H, W, 3], which must not be written to; decoded here where it is not stored.

        Raises:
            UnreadableImage: naming the file.
        """
        number = self._index.get(key)
        if number is None:
            return self.corpus.picture(key)
        start, end = self._offsets[number : number + 2].tolist()
        height, width = self._sides[number].tolist()
        found: NDArray[np.uint8] = np.asarray(self._pixels[start:end]).reshape(height, width, 3)
        return found


def write(corpus: IndexedCorpus, out: Path, progress: Callable[[int, int], None]) -> None:
    """Decode every image that a corpus's rows show and write them into ``out`` as they come.

    Args:
        corpus: the rows.
        out: the folder.
        progress: called with finished and total rows.

    Raises:
        OSError: when the disk has not the room.
    """
    from students.teacher_signal.appending import Appender

    out.mkdir(parents=True, exist_ok=True)
    files = {name: Appender(out / f"{name}.npy", dtype, shape) for name, (dtype, shape) in _ARRAYS.items()}
    names: dict[str, bool] = {}
    files["offsets"].add(np.zeros(1))
    for number, row in enumerate(corpus, start=1):
        for name in row.images:
            if name not in names:
                names[name] = _add(corpus, name, files)
        progress(number, len(corpus))
    shapes = {name: file.finish() for name, file in files.items()}
    write_json(out / NAMES, [name for name, there in names.items() if there])
    write_json(out / META, {"version": VERSION, "rows": corpus.digest, "shapes": shapes})


def _add(corpus: IndexedCorpus, name: str, files: dict[str, Any]) -> bool:
    """Append a picture; False for one that cannot be read any more, which whoever looks at it will hear."""
    try:
        picture = corpus.picture(name)
    except UnreadableImage:
        return False
    files["pixels"].add(picture.reshape(-1))
    files["offsets"].add(np.array([files["pixels"].rows]))
    files["sides"].add(np.array([picture.shape[:2]]))
    return True
