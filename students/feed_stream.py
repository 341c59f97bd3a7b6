"""Conversations of a corpus as a training reads them, one a row, prepared a little ahead of the step that takes them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from students.align import aligned
from students.data.conversations import Conversation, Corpus, Row
from students.data.order import Order
from students.feed import Feed, Hearing, Members, Part

if TYPE_CHECKING:
    from students.models._base import Adapter
    from students.options import DistilOptions

#: Tokens that a teacher may need beyond the student's for the part of a row that the student's limit left.
ROOM = 4096


class StreamFeed(Feed):
    """Rows of a corpus in the order that the seed gives.

    Args:
        corpus: the rows.
        options: of the training.
        seed: of the order.
        student: reads them.
        teacher: a live teacher that reads the same, or None.

    Raises:
        UserError: for an order that cannot be made.
    """

    def __init__(
        self, corpus: Corpus, options: DistilOptions, seed: int, student: Adapter, teacher: Adapter | None = None
    ) -> None:
        self.corpus, self.student, self.teacher, self.limit = corpus, student, teacher, options.max_length
        self.order = Order(
            corpus.lengths, corpus.shows, options.rows, seed, options.grouping, epochs=options.epochs, steps=options.steps,
            megabatch=options.megabatch,
        )  # fmt: skip
        self.steps, self.size = self.order.steps, len(corpus)
        self._names = student.tokens() if teacher is not None else ()
        self._ready: dict[tuple[int, ...], Future[Part]] = {}
        # one thread: tokenizers are not safe between several, and decoding fits into a step
        self._thread = ThreadPoolExecutor(1, "rows")

    def digest(self) -> str:
        """The corpus's."""
        return self.corpus.digest

    def members(self, step: int) -> Members:
        """Return the rows of step 1 .. steps, one sample each."""
        return [[row] for row in self.order.members(step - 1)]

    def ahead(self, parts: Sequence[Members]) -> None:
        """Start preparing micro-batches in the background."""
        for members in parts:
            key = _key(members)
            if key not in self._ready:
                self._ready[key] = self._thread.submit(self._make, members)

    def close(self) -> None:
        """Drop what was prepared, and end the thread."""
        self._ready.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def part(self, members: Members) -> Part:
        """Read rows, or take them where they are prepared.

        Raises:
            UserError: for a row that cannot be read, or that the teacher reads otherwise than the student.
            UnreadableImage: naming the image's file.
        """
        ready = self._ready.pop(_key(members), None)
        return ready.result() if ready is not None else self._thread.submit(self._make, members).result()

    def _make(self, members: Members) -> Part:
        indices = tuple(row[0] for row in members)
        found = [self.corpus[index] for index in indices]
        pictures = [[self.corpus.picture(key) for key in conversation.images] for conversation in found]
        rows = [self.student.row(c, p, self.limit) for c, p in zip(found, pictures, strict=True)]
        ids = tuple(conversation.id for conversation in found)
        batch = self.student.collate(rows, indices)
        cut = tuple(row.cut > 0 for row in rows)
        hearing = None
        if self.teacher is not None:
            heard = [self.teacher.row(c, p, _limit(row)) for c, p, row in zip(found, pictures, rows, strict=True)]
            said = self.teacher.collate(heard, indices)
            hearing = Hearing(said, aligned(batch, said, ids, cut, self._names))
        return Part(members, batch, ids, (False,) * len(ids), hearing, _counts(rows), cut)

    def describe(self, index: int) -> dict[str, Any]:
        """Id, source, images and turns of a row."""
        found: Conversation = self.corpus[index]
        turns = [[turn.user, turn.assistant] for turn in found.turns]
        return {"id": found.id, "source": found.source, "images": list(found.images), "turns": turns}


def _key(members: Members) -> tuple[int, ...]:
    return tuple(row[0] for row in members)


def _limit(row: Row) -> int | None:
    """The teacher reads whole what the student reads whole; of a row that was cut, enough to cover what was left."""
    return len(row.ids) + ROOM if row.cut else None


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    return {
        "rows": len(rows),
        "images": sum(row.pictures for row in rows),
        "text_only_rows": sum(row.pictures == 0 for row in rows),
        "cut_rows": sum(row.cut > 0 for row in rows),
        "cut_tokens": sum(row.cut for row in rows),
    }
