"""Conversation formats ``plain`` and ``v1``: what is said round questions, images and replies, and which tokens are learnt.

The rules are those of Meituan-AutoML/MobileVLM: mobilevlm/conversation.py (separators), mobilevlm/utils.py
(``tokenizer_image_token``: text is cut at images and each piece is tokenised alone) and mobilevlm/train/train.py
(``preprocess_multimodal``, ``preprocess_v1``, ``preprocess_plain``: which tokens are supervised). Three differences: text that
spells a special token stays text (there, a reply with ``</s>`` in it is skipped with a warning); several images in one question
stay several (there, one mark is left); and a limit of length counts the tokens of images (there, an image counts as one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError
from students.data.conversations import IMAGE, Conversation, Turn

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Section:
    """Text between two end tokens.

    Attributes:
        asked: what comes before the reply, cut where images stand: one piece more than images.
        glue: what stands between it and the reply.
        reply: the text to learn.
        ends: whether the end token follows, which is learnt too.
    """

    asked: tuple[str, ...]
    glue: str
    reply: str
    ends: bool


@dataclass(frozen=True)
class Coding:
    """How text becomes tokens.

    Attributes:
        encode: from text, and whether it continues the text before it, to ids; without special tokens. It puts a space before
            text that continues nothing, as sentencepiece does.
        bos, eos, image: ids; the last stands for one image feature.
        image_tokens: how many an image takes.
        legacy: whether text after an end token starts anew (True), as in transformers' ``legacy`` tokenizers.
    """

    encode: Callable[[str, bool], list[int]]
    bos: int
    eos: int
    image: int
    image_tokens: int
    legacy: bool = True


def v1(conversation: Conversation) -> list[Section]:
    """Vicuna's v1: a system sentence, ``USER: ... ASSISTANT: reply</s>``; images before the text of their question."""
    sections = []
    for number, turn in enumerate(conversation.turns):
        lead = f"{SYSTEM} " if number == 0 else ""
        asked = f"{lead}USER: {question(turn.user)} ASSISTANT:"
        sections.append(Section(tuple(asked.split(IMAGE)), " ", turn.assistant, True))
    return sections


def plain(conversation: Conversation) -> list[Section]:
    """For captions: the image, the reply and a line break, nothing else; the question is dropped."""
    if len(conversation.turns) != 1 or not conversation.images:
        raise UserError(
            f"row {conversation.id!r} has {len(conversation.turns)} turn(s) and {len(conversation.images)} image(s); the format"
            " plain is for one turn about an image (template: v1 is for others)"
        )
    turn: Turn = conversation.turns[0]
    return [Section(("",) * (len(conversation.images) + 1), "", turn.assistant + "\n", False)]


FORMATS: dict[str, Callable[[Conversation], list[Section]]] = {"plain": plain, "v1": v1}


def question(text: str) -> str:
    """Move the images of a question before its text; a text without any is left as it is."""
    marks = text.count(IMAGE)
    return ((IMAGE + "\n") * marks + text.replace(IMAGE, "").strip()).strip() if marks else text


def prompt(messages: Sequence[dict[str, Any]], bos: str, eos: str) -> str:
    """Render Hugging Face chat messages as v1, up to where the next reply starts; user and assistant take turns.

    Raises:
        UserError: for a role that the format has not, or messages that do not end with a question.
    """
    said = [f"{bos}{SYSTEM} "]
    for number, message in enumerate(messages):
        role = ("user", "assistant")[number % 2]
        if message["role"] != role:
            raise UserError(f"message {number} is of {message['role']!r}; the format v1 has user and assistant by turns")
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join(f"{IMAGE}\n" if part["type"] == "image" else part["text"] for part in parts)
        said.append(f"USER: {text} " if role == "user" else f"ASSISTANT: {text}{eos}")
    if len(messages) % 2 == 0:
        raise UserError("the messages end with a reply; the format v1 asks for one after a question")
    return "".join(said) + "ASSISTANT:"


def tokens(name: str, sections: Sequence[Section], coding: Coding) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokenise sections.

    Args:
        name: of the row, for messages.
        sections: from one of :data:`FORMATS`.
        coding: the vocabulary.

    Returns:
        Ids int64 [L], images expanded, and bool [L], True for what is learnt.

    Raises:
        UserError: where the tokens of question and reply cannot be told apart.
    """
    ids, learnt = [coding.bos], [False]
    for number, section in enumerate(sections):
        continues = number > 0 and not coding.legacy
        for place, piece in enumerate(section.asked[:-1]):
            made = coding.encode(piece, continues and place == 0)
            ids += made + [coding.image] * coding.image_tokens
            learnt += [False] * (len(made) + coding.image_tokens)
        continues = continues and len(section.asked) == 1
        head = section.asked[-1] + section.glue
        known = coding.encode(head, continues) if head else []
        if section.glue:
            known = known[:-1]  # the space becomes the start of the reply's first word
        whole = coding.encode(head + section.reply, continues)
        if whole[: len(known)] != known:
            raise UserError(f"row {name!r}: the tokens of turn {number + 1} do not end where its reply starts")
        tail = [coding.eos] if section.ends else []
        ids += whole + tail
        learnt += [False] * len(known) + [True] * (len(whole) - len(known) + len(tail))
    return np.array(ids, np.int64), np.array(learnt, np.bool_)
