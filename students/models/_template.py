"""What a chat template makes of a conversation, and which of it are the replies: found by rendering growing prefixes.

A prompt is rendered up to where a reply starts (``add_generation_prompt``) and again with the reply. What the second has more
is the reply, as the model will have to write it, and what ends it. Nothing is known of the template itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from harness.base import UserError
from students.data.conversations import IMAGE, Conversation

Message = dict[str, Any]


@dataclass(frozen=True)
class Script:
    """A rendered conversation that ends with its last reply.

    Attributes:
        text: with one placeholder an image, as the processor expects it.
        spans: characters [start, end) of each reply, its leading space and what ends it included.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def messages(conversation: Conversation) -> list[Message]:
    """Return the turns as Hugging Face chat messages, images where the text shows them.

    Line breaks beside an image are dropped, for templates bring their own; so is white space round a question or reply.

    Raises:
        UserError: when the marks in the text are not as many as the images, or a reply is empty.
    """
    marks = sum(turn.user.count(IMAGE) for turn in conversation.turns)
    if marks != len(conversation.images):
        raise UserError(
            f"row {conversation.id!r} has {len(conversation.images)} image(s) and {marks} mark(s) {IMAGE} in its questions;"
            " needed: one mark an image"
        )
    said: list[Message] = []
    for number, turn in enumerate(conversation.turns, start=1):
        reply = turn.assistant.strip()
        if not reply:
            raise UserError(f"row {conversation.id!r} has an empty reply in turn {number}; there is nothing to learn of it")
        content: list[dict[str, str]] = []
        for place, piece in enumerate(turn.user.strip().split(IMAGE)):
            if place:
                content.append({"type": "image"})
            if piece.strip():
                content.append({"type": "text", "text": piece.strip("\r\n")})
        said.append({"role": "user", "content": content or [{"type": "text", "text": ""}]})
        said.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
    return said


def script(processor: Any, conversation: Conversation, family: str) -> Script:
    """Render a conversation with a processor's own chat template and mark the replies.

    A reply ends with whatever special tokens the template puts after it; where it puts none (as that of LLaVA 1.5), the
    tokenizer's end token takes the place of the white space there, so that replies learn to end.

    Args:
        processor: with a chat template.
        conversation: the turns.
        family: for messages.

    Raises:
        UserError: naming family and turn, for a template that cannot be rendered, that rewrites what came before, or that
            changes a reply.
    """
    said = messages(conversation)
    ends = special_tokens(processor.tokenizer)
    text, spans, before, done = "", [], "", 0
    for number in range(1, len(conversation.turns) + 1):
        prompt = _rendered(processor, said[: 2 * number - 1], True, family, number)
        whole = _rendered(processor, said[: 2 * number], False, family, number)
        if not prompt.startswith(before):
            raise UserError(
                f"the chat template of this {family} rewrites what was said before turn {number} (row {conversation.id!r}), so"
                " replies cannot be told apart; use a template that only appends"
            )
        if not whole.startswith(prompt):
            raise UserError(
                f"the chat template of this {family} starts the reply of turn {number} (row {conversation.id!r}) in another way"
                " than it asks for one, so replies cannot be told apart; use a template that only appends"
            )
        reply, tail = said[2 * number - 1]["content"][0]["text"], whole[len(prompt) :]
        lead = tail[: len(tail) - len(tail.lstrip())]
        if not tail.startswith(lead + reply):
            raise UserError(
                f"the chat template of this {family} changes the reply of turn {number} (row {conversation.id!r}) from"
                f" {reply[:40]!r} to {tail[:40]!r}; use a template that keeps replies as they are"
            )
        ending = tail[len(lead) + len(reply) :].rstrip()
        closed = any(token in ending for token in ends)
        start = len(text) + len(prompt) - done
        text += prompt[done:] + lead + reply + ending
        if closed:
            done = len(prompt) + len(lead) + len(reply) + len(ending)
        else:
            text += _end(processor.tokenizer, family)
            done = len(whole)
        spans.append((start, len(text)))
        before = whole
    return Script(text, tuple(spans))


def _rendered(processor: Any, said: Sequence[Message], ask: bool, family: str, number: int) -> str:
    from jinja2 import TemplateError

    try:
        return str(processor.apply_chat_template(list(said), add_generation_prompt=ask, tokenize=False))
    except (TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"the chat template of this {family} cannot render turn {number} ({type(error).__name__}: {reason}); the processor"
            " needs a template (chat_template.jinja) for user and assistant messages with lists of images and texts"
        ) from error


def special_tokens(tokenizer: Any) -> Collection[str]:
    """Return the texts of a tokenizer's special tokens."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset({str(token) for token in tokenizer.all_special_tokens} | added)


def _end(tokenizer: Any, family: str) -> str:
    if tokenizer.eos_token is None:
        raise UserError(f"neither chat template nor tokenizer of this {family} ends a reply; name an eos_token")
    return str(tokenizer.eos_token)
