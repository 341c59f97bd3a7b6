"""How a conversation becomes a row: its tokens, which no limit shapes, and then the cut, one way for every family."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from harness.base import UserError
from students.data.conversations import Conversation, NothingToLearn, Picture, Row, Whole


class RowReader(abc.ABC):
    """The part of an adapter that reads conversations.

    Attributes:
        family: the ``model_type`` that messages name.
    """

    family: ClassVar[str] = ""

    @abc.abstractmethod
    def read(self, conversation: Conversation, pictures: Sequence[Picture] | None) -> tuple[Whole, dict[str, Tensor] | None]:
        """Tokenise one conversation whole.

        Args:
            conversation: the turns.
            pictures: uint8 [H, W, 3], or features of the tower [n, C], one per image of the conversation. None: the tokens
                alone, of a family whose images take a fixed number.

        Returns:
            Its tokens, and the image inputs where they were made by the way.

        Raises:
            UserError: for marks that do not fit the images, a template that cannot be cut into turns, or an image that the
                processor refuses.
        """

    @abc.abstractmethod
    def reading(self) -> dict[str, Any]:
        """Return what shapes the tokens of :meth:`read` beside conversation and pictures, as JSON-able values or digests.

        Raises:
            UserError: for a reader that makes other tokens of the same row another day.
        """

    @abc.abstractmethod
    def images(self, whole: Whole, end: int, pictures: Sequence[Picture], name: str) -> dict[str, Tensor]:
        """Return the image inputs of the first images of a row, without tokenising its text.

        Args:
            whole: the row.
            end: so many of its tokens are kept; they hold all of these images' tokens and no other's.
            pictures: these images, at least one.
            name: of the row, for messages.

        Raises:
            UserError: where the processor makes another number of tokens of them.
        """

    def row(self, conversation: Conversation, pictures: Sequence[Picture], limit: int | None = None) -> Row:
        """Tokenise one conversation with its supervised tokens marked, cut to ``limit`` tokens, those of images counted.

        Args:
            conversation, pictures: see :meth:`read`.
            limit: most tokens; None for no limit.

        Raises:
            NothingToLearn: for a row of which the limit leaves no supervised token.
            UserError: see :meth:`read`.
        """
        whole, inputs = self.read(conversation, pictures)
        return self.cut(whole, conversation.id, pictures, limit, inputs)

    def cut(
        self,
        whole: Whole,
        name: str,
        pictures: Sequence[Picture],
        limit: int | None = None,
        inputs: dict[str, Tensor] | None = None,
    ) -> Row:
        """Make a row of its tokens: exactly what :meth:`row` makes of the conversation.

        A row ends with its last supervised token, so a cut never ends inside an image; images after it are dropped with it.

        Args:
            whole: from :meth:`read`.
            name: the row's id.
            pictures: all of its images.
            limit: most tokens; None for no limit.
            inputs: of all of its images; None to make them here.

        Raises:
            NothingToLearn: when the limit leaves no supervised token.
            UserError: for images that are not those of the tokens.
        """
        if len(pictures) != len(whole.starts):
            raise UserError(f"row {name!r} names {len(whole.starts)} image(s) and comes with {len(pictures)}")
        learnt = np.flatnonzero(whole.supervised)
        kept = learnt if limit is None else learnt[learnt < limit]
        if not len(kept):
            raise NothingToLearn(name, int(limit or 0), int(learnt[0]))
        end = int(kept[-1]) + 1
        shown = int((whole.starts < end).sum())
        if inputs is None or shown < len(pictures):
            inputs = self.images(whole, end, pictures[:shown], name) if shown else {}
        return Row(whole.ids[:end], whole.supervised[:end], inputs, shown, len(learnt) - len(kept), int(kept[0]))
