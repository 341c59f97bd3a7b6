"""What a length limit cuts off: counted, and never all of a row without a word.

LLaVA cuts rows at ``model_max_length`` and says nothing: a row whose prompt alone is that long is a row with no labels. Here
such a row stops the training and is named, or, under ``overlong: replace``, the next row of its kind (with or without images)
takes its place, and it is counted and named. So a step always has all of its rows, and which rows they are depends on nothing
but the order: neither on what was read before, nor on what is read ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.base import UserError
from students.data.conversations import NothingToLearn

if TYPE_CHECKING:
    from students.data.conversations import Conversation, Corpus, Picture, Reader, Row
    from students.data.tokenised import Tokenised

Overlong = Literal["stop", "replace"]
#: So many overlong rows one after another mean that the limit is wrong, not the rows.
_PATIENCE = 64


@dataclass(frozen=True)
class Taken:
    """A row as it is trained on.

    Attributes:
        index: its number in the corpus: the one asked for, or that of the row which took its place.
        conversation: the row itself.
        pictures: its images, uint8 [H, W, 3] each, or features [n, C] where the corpus has those.
        row: its tokens.
        replaced: ids of the rows in whose place it stands.
    """

    index: int
    conversation: Conversation
    pictures: list[Picture]
    row: Row
    replaced: tuple[str, ...] = ()


def take(
    corpus: Corpus,
    reader: Reader,
    index: int,
    limit: int | None,
    overlong: Overlong = "stop",
    tokens: Tokenised | None = None,
) -> Taken:
    """Read and tokenise a row of a corpus, or the one that takes its place.

    Args:
        corpus: the rows.
        reader: the student's adapter.
        index: of the row.
        limit: most tokens of a row; None: no limit.
        overlong: what happens to a row of which the limit leaves nothing to learn.
        tokens: of the corpus, as the reader makes them; None to make them here.

    Raises:
        NothingToLearn: for such a row, under ``stop``.
        UserError: where the next rows are no better; and see :meth:`students.data.conversations.Reader.row`.
        UnreadableImage: naming the file.
    """
    replaced: list[str] = []
    place, shown = index, bool(corpus.shows[index])
    while True:
        conversation = corpus[place]
        pictures = [corpus.picture(key) for key in conversation.images]
        try:
            row = made(reader, conversation, pictures, limit, tokens, place)
        except NothingToLearn as error:
            if overlong == "stop":
                raise
            replaced.append(conversation.id)
            if len(replaced) == _PATIENCE:
                raise UserError(f"{_PATIENCE} rows in a row are too long for max_length {limit}; the last: {error}") from error
            place = _next(corpus, place, shown)
            continue
        if not row.supervised.any():  # a reader that forgets its contract would train on nothing
            raise RuntimeError(f"row {conversation.id!r} came back without supervised tokens")
        return Taken(place, conversation, pictures, row, tuple(replaced))


def made(
    reader: Reader,
    conversation: Conversation,
    pictures: Sequence[Picture],
    limit: int | None,
    tokens: Tokenised | None,
    index: int,
) -> Row:
    """Make row ``index`` of a corpus of its tokens, where they are stored; else of the conversation."""
    whole = None if tokens is None else tokens[index]
    if whole is None:
        return reader.row(conversation, pictures, limit)
    return reader.cut(whole, conversation.id, pictures, limit)


def _next(corpus: Corpus, place: int, shown: bool) -> int:
    """Return the next row, after the last the first, that shows images, or that shows none."""
    for step in range(1, len(corpus) + 1):
        found = (place + step) % len(corpus)
        if bool(corpus.shows[found]) == shown:
            return found
    raise RuntimeError("a row is of its own kind")


def counts(taken: Sequence[Taken]) -> dict[str, int]:
    """Return sums over rows, which may be summed over batches and steps.

    ``rows``; ``images``; ``text_only_rows``; ``supervised_tokens`` that are learned from; ``cut_rows`` that lost supervised
    tokens, and how many, ``cut_tokens``; ``replaced_rows`` that had nothing left to learn.
    """
    return {
        "rows": len(taken),
        "images": sum(each.row.pictures for each in taken),
        "text_only_rows": sum(each.row.pictures == 0 for each in taken),
        "supervised_tokens": sum(int(each.row.supervised.sum()) for each in taken),
        "cut_rows": sum(each.row.cut > 0 for each in taken),
        "cut_tokens": sum(each.row.cut for each in taken),
        "replaced_rows": sum(len(each.replaced) for each in taken),
    }


def line(total: Mapping[str, int]) -> str:
    """Say what sums of :func:`counts` mean, in one line for people; empty where nothing was cut."""
    said = []
    if total["cut_rows"]:
        share = 100 * total["cut_tokens"] / (total["supervised_tokens"] + total["cut_tokens"])
        said.append(
            f"{total['cut_rows']:,} of {total['rows']:,} rows lost {total['cut_tokens']:,} supervised tokens ({share:.2g} %)"
        )
    if total["replaced_rows"]:
        said.append(f"{total['replaced_rows']:,} rows had nothing left to learn, and the next of their kind took their place")
    return "; ".join(said)
