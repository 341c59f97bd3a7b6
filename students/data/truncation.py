"""What a length limit cuts off: counted, reported, and never all of a row without a word.

LLaVA cuts rows at ``model_max_length`` and says nothing: a row whose prompt alone is that long is a row with no labels. Here
such a row stops the training and is named, unless it may be left out (``overlong: skip``); then it is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.base import UserError
from students.data.conversations import NothingToLearn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from students.data.conversations import Conversation, Reader, Row

Overlong = Literal["stop", "skip"]
#: Ids that are kept to be named.
_NAMED = 5


@dataclass
class Truncation:
    """Counts over the rows that a training read; a row read in two epochs counts twice.

    Attributes:
        overlong: what happens to a row of which the limit leaves nothing to learn: ``stop`` or ``skip``.
        rows: rows read, those left out included.
        tokens: supervised tokens that were kept.
        cut_rows: rows that lost supervised tokens and kept some.
        cut_tokens: supervised tokens that those rows lost.
        skipped_rows: rows left out, of which nothing was left to learn.
        skipped: the first ones' ids.
    """

    overlong: Overlong = "stop"
    rows: int = 0
    tokens: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    skipped_rows: int = 0
    skipped: list[str] = field(default_factory=list)

    def read(
        self, reader: Reader, conversation: Conversation, pictures: list[NDArray[np.uint8]], limit: int | None
    ) -> Row | None:
        """Tokenise a conversation and count what was cut.

        Returns:
            The row, or None for one that is left out.

        Raises:
            NothingToLearn: for a row of which the limit leaves nothing to learn, under ``overlong: stop``.
            UserError: see :meth:`students.data.conversations.Reader.row`.
        """
        try:
            row = reader.row(conversation, pictures, limit)
        except NothingToLearn:
            if self.overlong == "stop":
                raise
            self.rows += 1
            self.skipped_rows += 1
            if len(self.skipped) < _NAMED:
                self.skipped.append(conversation.id)
            return None
        kept = int(row.supervised.sum())
        if kept == 0:  # a reader that forgets its contract would train on nothing
            raise RuntimeError(f"row {conversation.id!r} came back without supervised tokens")
        self.rows += 1
        self.tokens += kept
        self.cut_rows += row.cut > 0
        self.cut_tokens += row.cut
        return row

    def facts(self) -> dict[str, Any]:
        """Return the counts as JSON-able values, for the report and for a resume point; see :meth:`of`."""
        return {
            "overlong": self.overlong,
            "rows": self.rows,
            "supervised_tokens": self.tokens,
            "cut_rows": self.cut_rows,
            "cut_supervised_tokens": self.cut_tokens,
            "skipped_rows": self.skipped_rows,
            "first_skipped": list(self.skipped),
        }

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Truncation:
        """Return the accumulator that :meth:`facts` describes.

        Raises:
            UserError: for facts that are not complete.
        """
        try:
            return cls(
                facts["overlong"], facts["rows"], facts["supervised_tokens"], facts["cut_rows"], facts["cut_supervised_tokens"],
                facts["skipped_rows"], list(facts["first_skipped"]),
            )  # fmt: skip
        except KeyError as error:
            raise UserError(f"counts of cut rows lack {error}") from error

    def line(self) -> str:
        """Return one sentence for people; empty where nothing was cut."""
        said = []
        if self.cut_rows:
            share = 100 * self.cut_tokens / (self.tokens + self.cut_tokens)
            said.append(f"{self.cut_rows:,} of {self.rows:,} rows lost {self.cut_tokens:,} supervised tokens ({share:.2g} %)")
        if self.skipped_rows:
            said.append(f"{self.skipped_rows:,} had nothing left to learn and were left out, first {', '.join(self.skipped)}")
        return "; ".join(said)
