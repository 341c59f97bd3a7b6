"""Rows of a training corpus that does not fit in memory: conversations about images, read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError

if TYPE_CHECKING:
    import torch

    from students.data.pack import Batch

#: An image of a row: uint8 [H, W, 3], or what a frozen tower sees in it [n, C], where that is stored (students/vision).
Picture: TypeAlias = "NDArray[np.uint8] | torch.Tensor"

#: Where a user's text shows an image, as LLaVA's files write it.
IMAGE = "<image>"


@dataclass(frozen=True)
class Turn:
    """A question, with :data:`IMAGE` where it shows one, and the reply to learn."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Conversation:
    """One training row.

    Attributes:
        id: unique within the corpus.
        source: where the row comes from: the benchmark, or the corpus's name.
        images: keys of its images, in the order in which the marks in the text show them.
        turns: at least one.
    """

    id: str
    source: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]


class Corpus(Protocol):
    """Rows by number; what is in memory does not grow with how many there are.

    Attributes:
        name: for messages.
        digest: SHA-256 (hex) of the rows, in order, and of the names and sizes of the image files they show.
        lengths: int32 [S], memory-mapped: words of a row's text, an estimate that batches are grouped by.
        shows: int16 [S], memory-mapped: how many images a row shows.
    """

    name: str
    digest: str
    lengths: NDArray[np.int32]
    shows: NDArray[np.int16]

    def __len__(self) -> int:
        """S, the number of rows."""

    def __getitem__(self, index: int) -> Conversation:
        """Read one row."""

    def picture(self, key: str) -> Picture:
        """Read one image as uint8 [H, W, 3], or its features.

        Raises:
            UnreadableImage: naming the file, when it is missing, truncated or no image.
        """


class UnreadableImage(UserError):
    """An image that cannot be read; the harness stops, or counts it where the user allowed some (``--skip-unreadable``).

    Attributes:
        key: of the image.
        reason: one line: the path and what is wrong with it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"image {key!r}: {reason}")
        self.key, self.reason = key, reason


class NothingToLearn(UserError):
    """A row of which the length limit leaves no supervised token; see students/data/truncation.py.

    Attributes:
        id: of the row.
    """

    def __init__(self, id: str, limit: int, prompt: int) -> None:
        super().__init__(
            f"row {id!r} has {prompt} tokens before its first reply, so a limit of {limit} leaves nothing to learn;"
            " allow more with max_length, or let other rows take the place of such, counted, with overlong: replace"
        )
        self.id = id


@dataclass(frozen=True)
class Row:
    """A conversation as one model reads it; on the CPU.

    Attributes:
        ids: int64 [L], image tokens expanded.
        supervised: bool [L], the tokens to learn: the replies and the tokens that end them. The first token never is one.
        pixels: the model's image inputs for this row by keyword (``pixel_values`` [I, 3, H, W] or as the family has it).
        pictures: I, how many images the row shows.
        cut: supervised tokens that did not fit and were cut off.
        prompt: how many leading tokens come before the first supervised one.
    """

    ids: NDArray[np.int64]
    supervised: NDArray[np.bool_]
    pixels: dict[str, torch.Tensor]
    pictures: int
    cut: int
    prompt: int


@dataclass(frozen=True)
class Whole:
    """A conversation's tokens before any limit, which are the same for whoever reads alike.

    Attributes:
        ids: int64 [L], image tokens expanded.
        supervised: bool [L], as :class:`Row` has them.
        starts: int64 [I], where in ``ids`` each image begins.
    """

    ids: NDArray[np.int64]
    supervised: NDArray[np.bool_]
    starts: NDArray[np.int64]


class Reader(Protocol):
    """What of a model's adapter turns conversations into batches; see students/models/_base.py."""

    def row(self, conversation: Conversation, pictures: Sequence[Picture], limit: int | None = None) -> Row:
        """Tokenise one conversation with its supervised tokens marked, cut to ``limit`` tokens.

        Raises:
            NothingToLearn: for a row of which the limit leaves no supervised token.
            UserError: for marks that do not fit the images, or a template that cannot be cut into turns.
        """

    def cut(self, whole: Whole, name: str, pictures: Sequence[Picture], limit: int | None = None) -> Row:
        """Make the same row of tokens that are known already; see :meth:`students.models._rows.RowReader.cut`."""

    def collate(self, rows: list[Row], indices: tuple[int, ...]) -> Batch:
        """Pad rows into one batch: one sample per row, [R, L] attention mask."""
