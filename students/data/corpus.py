"""A corpus on disk: one JSON line per row and arrays with one number per row, so that any row is two reads away.

A folder holds ``rows.jsonl`` ({id, images, turns: [[user, assistant], ...]} and source where it is not the corpus's name),
``offsets.npy`` (int64 [S + 1], where each line begins and the last one ends), ``lengths.npy`` (int32 [S]), ``shows.npy``
(int16 [S]) and ``corpus.json`` (:class:`Facts`, written last: without it the folder is no corpus).
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.base import Strict, UserError, parse, read_json, write_json
from students.data import images as picture_files
from students.data.conversations import Conversation, Turn, UnreadableImage

ROWS, FACTS = "rows.jsonl", "corpus.json"
ARRAYS: dict[str, type[np.signedinteger[Any]]] = {"offsets": np.int64, "lengths": np.int32, "shows": np.int16}
#: Where a corpus keeps images of its own, which came to it as bytes and not as files.
IMAGES = "images"


class Unreadable(Strict):
    """An image whose rows were left out: its key, and what is wrong with the file."""

    key: str
    reason: str


class Remark(Strict):
    """Rows of the source that were left out, or not taken as they are: how many, and the first ones' ids."""

    rows: int
    first: tuple[str, ...]


class Sizes(Strict):
    """What says before anything is written how much its tokens and pictures take, at most.

    Attributes:
        text: bytes of its rows in JSON.
        turns: questions and replies.
        shown: images that rows show, repeats counted.
        pixels: bytes of its distinct images decoded, 3 a pixel.
    """

    text: int
    turns: int
    shown: int
    pixels: int


class Facts(Strict):
    """What ``corpus.json`` says. It holds no times and no absolute paths, so that the same data give the same file.

    Attributes:
        name: of the corpus.
        format: of its source.
        digest: see :class:`students.data.conversations.Corpus`.
        source_rows: rows of the source, those left out included.
        rows: S.
        rows_with_image: how many of them show images.
        images: distinct readable images that they show.
        unreadable: images that could not be read.
        skipped: what was wrong -> the rows that were left out for it.
        changed: what was unusual -> the rows that were taken all the same, as LLaVA takes them.
        sizes: None of a corpus that an earlier version wrote.
    """

    name: str
    format: str
    digest: str
    source_rows: int = Field(ge=0)
    rows: int = Field(ge=1)
    rows_with_image: int = Field(ge=0)
    images: int = Field(ge=0)
    unreadable: tuple[Unreadable, ...] = ()
    skipped: dict[str, Remark] = Field(default_factory=dict)
    changed: dict[str, Remark] = Field(default_factory=dict)
    sizes: Sizes | None = None


def words(conversation: Conversation) -> int:
    """Count the words of a conversation, marks of images included: the length that LLaVA groups rows by."""
    return sum(len(turn.user.split()) + len(turn.assistant.split()) for turn in conversation.turns)


class IndexWriter:
    """Writes rows and their arrays, holding one row at a time; a context manager.

    Args:
        folder: made if it is not there; ``rows.jsonl`` and the arrays in it are written anew.
        name: of the corpus: the source that needs no mention.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.rows = self.rows_with_image = self.turns = self.shown = 0
        self.bytes = 0
        self._lines: BinaryIO = (folder / ROWS).open("wb")
        self._raw: dict[str, BinaryIO] = {array: (folder / f"{array}.raw").open("wb") for array in ARRAYS}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in (self._lines, *self._raw.values()):
            file.close()
        if kind is None:
            for array, dtype in ARRAYS.items():
                _as_npy(self.folder / f"{array}.raw", self.folder / f"{array}.npy", np.dtype(dtype))

    def add(self, conversation: Conversation) -> None:
        """Append a row."""
        value: dict[str, Any] = {"id": conversation.id, "images": list(conversation.images)}
        if conversation.source != self.name:
            value["source"] = conversation.source
        value["turns"] = [[turn.user, turn.assistant] for turn in conversation.turns]
        line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        self._lines.write(line)
        if self.rows == 0:
            self._put("offsets", 0)
        self.bytes += len(line)
        self._put("offsets", self.bytes)
        self._put("lengths", words(conversation))
        self._put("shows", len(conversation.images))
        self.rows += 1
        self.rows_with_image += bool(conversation.images)
        self.turns += len(conversation.turns)
        self.shown += len(conversation.images)

    def _put(self, array: str, value: int) -> None:
        self._raw[array].write(ARRAYS[array](value).tobytes())


def _as_npy(raw: Path, target: Path, dtype: np.dtype[Any]) -> None:
    """Put numpy's header before raw numbers, without reading them into memory."""
    count = raw.stat().st_size // dtype.itemsize
    with raw.open("rb") as source, target.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(source, file)
    raw.unlink()


def finish(folder: Path, facts: Facts) -> None:
    """Write ``corpus.json``, which makes the folder a corpus."""
    write_json(folder / FACTS, facts.model_dump(mode="json"))


class IndexedCorpus:
    """Reads a corpus; implements :class:`students.data.conversations.Corpus`. Threads may share it; it can be pickled.

    Args:
        folder: what :class:`IndexWriter` and :func:`finish` wrote.
        image_root: the folder that images are named in; None: the corpus's own ``images/``.

    Raises:
        UserError: for a folder that is no whole corpus, or an image folder that is not there though rows show images.
    """

    def __init__(self, folder: str | Path, image_root: str | Path | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / FACTS).is_file():
            raise UserError(f"{self.folder} is no corpus: it has no {FACTS}. Run the preset's corpus stage again")
        self.facts = parse(Facts, read_json(self.folder / FACTS), str(self.folder / FACTS))
        self.image_root = self.folder / IMAGES if image_root is None else Path(image_root)
        if self.facts.images and not self.image_root.is_dir():
            raise UserError(f"corpus {self.facts.name!r}: the image folder {self.image_root} does not exist")
        self.name, self.digest = self.facts.name, self.facts.digest
        self._offsets: NDArray[np.int64] = self._array("offsets", self.facts.rows + 1)
        self.lengths: NDArray[np.int32] = self._array("lengths", self.facts.rows)
        self.shows: NDArray[np.int16] = self._array("shows", self.facts.rows)
        self._lines = os.open(self.folder / ROWS, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._lines)
        size, wanted = os.fstat(self._lines).st_size, int(self._offsets[-1])
        if size != wanted:
            raise UserError(f"{self.folder / ROWS} is damaged: {size} bytes, {wanted} were written. Delete {self.folder}")

    def _array(self, name: str, count: int) -> NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). Delete {self.folder} and run the same command again") from error
        if found.shape != (count,) or found.dtype != ARRAYS[name]:
            raise UserError(f"{path} is damaged: {found.dtype} {found.shape}, expected {np.dtype(ARRAYS[name])} ({count},)")
        return found

    def __len__(self) -> int:
        return self.facts.rows

    def __reduce__(self) -> tuple[type[IndexedCorpus], tuple[Path, Path]]:
        return (IndexedCorpus, (self.folder, self.image_root))

    def line(self, index: int) -> bytes:
        """Return a row as it is in the file.

        Raises:
            IndexError: for a row that is not in 0 .. S-1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of corpus {self.name!r} is not in 0 .. {len(self) - 1}")
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return os.pread(self._lines, end - start, start)

    def __getitem__(self, index: int) -> Conversation:
        return _conversation(self.line(index), self.name)

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))

    def picture(self, key: str) -> NDArray[np.uint8]:
        """Read one image as uint8 [H, W, 3]; see :func:`students.data.images.read`.

        Raises:
            UnreadableImage: naming the file.
        """
        path = self.image_root / key
        try:
            return picture_files.read(path)
        except picture_files.DAMAGED as error:
            raise UnreadableImage(key, f"{path} {picture_files.reason(path, error)}") from error

    def pictures(self, conversation: Conversation) -> list[NDArray[np.uint8]]:
        """Read all images of a row, in order."""
        return [self.picture(key) for key in conversation.images]


def _conversation(line: bytes, name: str) -> Conversation:
    value = json.loads(line)
    turns = tuple(Turn(user, assistant) for user, assistant in value["turns"])
    return Conversation(value["id"], value.get("source", name), tuple(value["images"]), turns)


def read_lines(folder: Path, name: str) -> Iterator[Conversation]:
    """Yield the rows of a corpus that is still being made, in order."""
    with (folder / ROWS).open("rb") as file:
        for line in file:
            yield _conversation(line, name)
