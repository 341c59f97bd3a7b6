"""Rows of a corpus as tokens, kept on disk: made once, memory-mapped by whoever reads alike, whatever its length limit.

A folder holds ``ids.npy`` int32 [T], ``supervised.npy`` bool [T] and ``starts.npy`` int32 [I] (where in its row each image
begins), one row after the other; ``places.npy`` int64 [S + 1, 2], where each row begins in the two, and the last one ends; and,
written last, ``meta.json``: version, key, sizes, and how many rows could not be read. Those are empty here, and are read as
they would be without the folder, which says what is wrong with them. A folder that holds only ``why.json`` says why not more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.base import UserError, digest, read_json
from students.data.conversations import Whole
from students.data.mapped import REMAKE, mapped

if TYPE_CHECKING:
    from students.data.conversations import Conversation, Corpus
    from students.models._base import Adapter

#: Raise when the same corpus and reader would give other files.
VERSION = 1
META, WHY = "meta.json", "why.json"
_ARRAYS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "ids": (np.int32, ()), "supervised": (np.bool_, ()), "starts": (np.int32, ()), "places": (np.int64, (2,)),
}  # fmt: skip
#: Rows with images that are read with and without them, before all are read without.
_PROBES = 8


class Unfit(UserError):
    """Tokens that another reader made, or of other rows; its text says which."""


def key(adapter: Adapter, corpus: Corpus) -> dict[str, str]:
    """Return what tokens depend on: the rows, and how they are read; SHA-256 (hex).

    Raises:
        UserError: for a reader whose tokens cannot be kept.
    """
    import tokenizers
    import transformers

    versions = [VERSION, transformers.__version__, tokenizers.__version__]
    return {"rows": corpus.digest, "reader": digest([versions, adapter.reading()])}


class Tokenised:
    """A corpus's tokens, memory-mapped; threads may share it.

    Args:
        folder: what :func:`write` made.
        expected: the :func:`key` of whoever reads.

    Raises:
        UserError: naming the file that is missing, cut off or of another version.
        Unfit: where they were made by another reader, or of other rows.
    """

    def __init__(self, folder: Path, expected: dict[str, str]) -> None:
        meta = read_json(folder / META) if (folder / META).is_file() else None
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            raise UserError(f"{folder} holds no tokens of version {VERSION} ({META}). {REMAKE}")
        if meta["key"]["rows"] != expected["rows"]:
            raise Unfit("the stored tokens are of other rows")
        if meta["key"]["reader"] != expected["reader"]:
            raise Unfit("it reads text or images otherwise than the base, whose tokens are stored")
        self.folder, self.unread = folder, int(meta["unread"])
        arrays = {name: mapped(folder, name, dtype, tuple(meta["shapes"][name])) for name, (dtype, _) in _ARRAYS.items()}
        self._ids, self._supervised, self._starts, self._places = (arrays[name] for name in _ARRAYS)
        ends = [len(self._ids), len(self._starts)]
        if not len(self._places) or self._places[-1].tolist() != ends or len(self._supervised) != ends[0]:
            raise UserError(f"{folder / 'places.npy'} does not fit the other arrays. {REMAKE}")

    def __len__(self) -> int:
        return len(self._places) - 1

    def __getitem__(self, index: int) -> Whole | None:
        """Return a row's tokens; None for one that could not be read."""
        (start, image), (end, last) = self._places[index].tolist(), self._places[index + 1].tolist()
        if start == end:
            return None
        ids, starts = (np.array(flat, np.int64) for flat in (self._ids[start:end], self._starts[image:last]))
        return Whole(ids, np.array(self._supervised[start:end]), starts)


def opened(folder: Path | None, corpus: Corpus, adapter: Adapter) -> tuple[Tokenised | None, str]:
    """Open stored tokens for a model, and say why it has none, or how many rows there are.

    Raises:
        UserError: for a folder that is damaged.
    """
    if folder is None:
        return None, "no tokens are stored"
    if (folder / WHY).is_file():
        return None, str(read_json(folder / WHY)["why"])
    try:
        expected = key(adapter, corpus)
    except UserError as error:
        return None, str(error)
    try:
        found = Tokenised(folder, expected)
    except Unfit as error:
        return None, str(error)
    if len(found) != len(corpus):
        raise UserError(f"{folder} holds {len(found)} rows, and corpus {corpus.name!r} {len(corpus)}. {REMAKE}")
    left = f"; {found.unread:,} could not be read" if found.unread else ""
    return found, f"tokens of {len(found):,} rows, made once{left}"


def write(corpus: Corpus, adapter: Adapter, out: Path, progress: Callable[[int, int], None]) -> None:
    """Tokenise all rows of a corpus, whole, and write them into ``out`` as they come.

    Args:
        corpus: S rows.
        adapter: whose family, processor and conversation format shape them.
        out: the folder.
        progress: called with finished and total rows.

    Raises:
        UserError: for a reader whose tokens cannot be kept.
        OSError: when the disk has not the room.
    """
    from harness.base import write_json
    from students.teacher_signal.appending import Appender

    found = key(adapter, corpus)
    out.mkdir(parents=True, exist_ok=True)
    files = {name: Appender(out / f"{name}.npy", dtype, shape) for name, (dtype, shape) in _ARRAYS.items()}
    bare = adapter.vision_tokens is not None and _alike(corpus, adapter)
    unread = 0
    files["places"].add(np.zeros((1, 2)))
    for index in range(len(corpus)):
        conversation = corpus[index]
        try:
            whole = _read(corpus, adapter, conversation, bare)
        except UserError:  # whoever takes the row hears it, and nobody else has to
            unread += 1
        else:
            for name in ("ids", "supervised", "starts"):
                files[name].add(getattr(whole, name))
        files["places"].add(np.array([[files["ids"].rows, files["starts"].rows]]))
        progress(index + 1, len(corpus))
    shapes = {name: file.finish() for name, file in files.items()}
    write_json(out / META, {"version": VERSION, "key": found, "shapes": shapes, "unread": unread})


def _read(corpus: Corpus, adapter: Adapter, conversation: Conversation, bare: bool) -> Whole:
    """Tokenise a row; without its images where their number of tokens is fixed."""
    pictures = None if bare else [corpus.picture(name) for name in conversation.images]
    return adapter.read(conversation, pictures)[0]


def _alike(corpus: Corpus, adapter: Adapter) -> bool:
    """Say whether rows are the same without their images, by the first ones that show any."""
    for index in np.flatnonzero(np.asarray(corpus.shows) > 0)[:_PROBES].tolist():
        read = functools.partial(_read, corpus, adapter, corpus[index])
        try:
            one, other = read(True), read(False)
        except UserError:
            return False
        if any(not np.array_equal(getattr(one, name), getattr(other, name)) for name in ("ids", "supervised", "starts")):
            return False
    return True
