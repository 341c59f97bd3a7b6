"""Conversations of a corpus as a training reads them, one a row, prepared a little ahead of the step that takes them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UserError
from students.align import aligned
from students.data import tokenised
from students.data.conversations import Conversation, Corpus, Picture, Row
from students.data.decoded import Decoded
from students.data.order import Order
from students.data.truncation import Taken, counts, made, take
from students.feed import Feed, Hearing, Members, Part
from students.options import ROOM, DistilOptions
from students.vision import pictures

if TYPE_CHECKING:
    from students.models._base import Adapter


class StreamFeed(Feed):
    """Rows of a corpus in the order that the seed gives.

    Args:
        corpus: the rows.
        options: of the training.
        seed: of the order.
        student: reads them.
        teacher: a live teacher that reads the same, or None.
        vision: folder of stored features, for whichever of the two has that tower; None where nothing is stored.
        tokens: folder of the corpus's tokens, for whichever of the two reads like that; None where nothing is stored.

    Raises:
        UserError: for an order that cannot be made, or a template that the student's family does not have.
    """

    def __init__(
        self,
        corpus: Corpus,
        options: DistilOptions,
        seed: int,
        student: Adapter,
        teacher: Adapter | None = None,
        vision: Path | None = None,
        tokens: Path | None = None,
    ) -> None:
        self.corpus, self.student, self.teacher, self.limit = corpus, student, teacher, options.max_length
        self.overlong = options.overlong
        if options.template is not None:
            speak(student, options.template)
            if teacher is not None and hasattr(type(teacher), "template"):
                speak(teacher, options.template)
        self._seen, why = pictures.corpus(corpus, student, vision, options.precision == "bf16")
        self._heard, heard = self._seen, why
        if teacher is not None:
            self._heard, heard = pictures.corpus(corpus, teacher, vision, options.teacher_dtype == "bfloat16")
        if vision is not None:
            self.vision = {"student": why, **({} if teacher is None else {"teacher": heard})}
        self._tokens, why = tokenised.opened(tokens, corpus, student)
        self._theirs, heard = (None, "") if teacher is None else tokenised.opened(tokens, corpus, teacher)
        if tokens is not None:
            self.tokens = {"student": why, **({} if teacher is None else {"teacher": heard})}
        if isinstance(corpus, Decoded):
            self.pictures = {"images": corpus.why}
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
        taken = [take(self._seen, self.student, row[0], self.limit, self.overlong, self._tokens) for row in members]
        indices, rows = tuple(each.index for each in taken), [each.row for each in taken]
        ids = tuple(each.conversation.id for each in taken)
        batch = self.known(self.student.collate(rows, indices))
        cut = tuple(row.cut > 0 for row in rows)
        hearing = None
        if self.teacher is not None:
            alike = isinstance(self._seen, pictures.Seen) == isinstance(self._heard, pictures.Seen)
            shown = [each.pictures if alike else pictures.read(self._heard, each.conversation.images) for each in taken]
            heard = [self._read(each, pictures) for each, pictures in zip(taken, shown, strict=True)]
            said = self.teacher.collate(heard, indices)
            hearing = Hearing(said, aligned(batch, said, ids, cut, self._names))
        return Part(
            members, batch, ids, (False,) * len(ids), hearing, counts(taken), cut, sum((each.replaced for each in taken), ())
        )

    def _read(self, taken: Taken, pictures: Sequence[Picture]) -> Row:
        """Read a row as the teacher does."""
        assert self.teacher is not None
        return made(self.teacher, taken.conversation, pictures, _limit(taken.row), self._theirs, taken.index)

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


def speak(adapter: Any, template: str) -> None:
    """Set an adapter's conversation format.

    Raises:
        UserError: for one that its family does not have.
    """
    if not hasattr(type(adapter), "template"):
        raise UserError(
            f"template is {template!r}, and a {adapter.family} has its processor's own alone; leave template out of the preset"
        )
    adapter.template = template
