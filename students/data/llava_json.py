"""LLaVA's training files: a JSON array, or JSON lines, of {id, image, conversations: [{from, value}, ...]}, of any size.

What is unusual in a row is either read as LLaVA and MobileVLM read it, and counted, or the row is left out, counted and named
(haotian-liu/LLaVA and Meituan-AutoML/MobileVLM, ``train.py``: ``preprocess_multimodal``, ``preprocess_v1``):

=============================================  ============================================================================
a row that                                     is
=============================================  ============================================================================
repeats an id, has none, or a number           called ``id#2``, ``id#3``, ...; ``row N`` (from 0); the number as text
names ``image`` as null, "" or []              a row without image
begins with gpt                                read from the first human turn on, counted; LLaVA: the same
ends with a question                           read without it, counted; LLaVA: no token of it is learned
has its one image's mark behind or in a turn   given ``<image>`` and a line break before that turn's text; LLaVA: the same
marks its one image several times in a turn    the same, counted
shows several images                           read as it is: a mark for each, in order (LLaVA 1.5 knows one image a row)
has more or fewer marks than images            left out (LLaVA trains without the image, or reads the mark as plain text)
has a mark in a reply                          left out (LLaVA would show the image there)
has an empty reply, or no reply at all         left out (LLaVA learns the end token alone)
has two turns of one speaker in a row          left out (LLaVA stops at an assertion)
shows a video                                  left out
holds half a surrogate pair                    left out (it is no Unicode text, so it has no tokens)
=============================================  ============================================================================

A file that is no such list, a row that is no object, an unknown speaker, and an image outside the image folder stop the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from harness.base import UserError, unknown
from students.data import images
from students.data.conversations import IMAGE, Conversation, Turn
from students.data.indexing import Found

_CHUNK = 1 << 20
#: No row is longer than this many characters: in a damaged file, what looks like one row may be all the rest.
_LONGEST = 1 << 26
#: An error this near the end of what is read so far may be a literal or an escape that is cut off.
_TOKEN = 16
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_SPACE = " \t\r\n"


class Skip(Exception):
    """A row that is left out; its text says why, in words that are the same for every such row."""


def rows(path: Path, name: str) -> Iterator[Found]:
    """Yield the rows of a file, those that are left out included, as they are read.

    Args:
        path: the file.
        name: of the corpus, which the rows name as their source.

    Raises:
        UserError: as :func:`elements` and :func:`read` say.
    """
    for element in elements(path):
        where = f"{path}: row {element.number} (from 0)"
        given = element.value.get("id") if isinstance(element.value, dict) else None
        label = f"row {element.number}" if given is None or given == "" else str(given)
        label = label.encode("utf-8", "backslashreplace").decode()  # of half a surrogate pair, which no file could hold
        try:
            images, turns, changed = read(element.value, where)
        except Skip as skip:
            yield Found(label, skipped=str(skip), read=element.characters)
        else:
            yield Found(label, Conversation(label, name, images, turns), changed=changed, read=element.characters)


# ---- the file --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Element:
    """One value of the list: its number from 0, and how many characters of the file are read by now."""

    number: int
    value: Any
    characters: int


def elements(path: Path) -> Iterator[Element]:
    """Yield the values of a JSON array or of JSON lines, holding one of them at a time.

    Raises:
        UserError: for a file that is missing, empty, neither, not UTF-8, or damaged, naming the row.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from _Elements(path, file)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error.reason})") from error


class _Elements:
    """A window onto the text that moves on value by value."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._read, self._ended = "", 0, 0, False
        self._decoder = json.JSONDecoder()
        self._number = 0

    def __iter__(self) -> Iterator[Element]:
        first = self._peek()
        if first == "":
            raise UserError(f"{self._path} is empty")
        if first not in "[{":
            raise UserError(f"{self._path}: neither a JSON array nor JSON lines: it begins with {first!r}")
        if first == "{":
            yield from self._lines()
            return
        self._at += 1
        if self._peek() != "]":
            yield self._value()
            while self._peek() == ",":
                self._at += 1
                yield self._value()
        if self._peek() != "]":
            self._fail("expected ',' or ']' behind it" if self._peek() else "the file ends inside the list; is it whole?")
        self._at += 1
        if self._peek():
            self._fail("there is more text behind the list")

    def _lines(self) -> Iterator[Element]:
        while self._peek():
            yield self._value()

    def _peek(self) -> str:
        """Return the next character that is no white space, or "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def _more(self, characters: int) -> bool:
        """Read on, and forget what is behind."""
        if self._ended:
            return False
        new = self._file.read(characters)
        self._ended = new == ""
        self._text, self._at = self._text[self._at :] + new, 0
        self._read += len(new)
        return not self._ended

    def _value(self) -> Element:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                held = len(self._text) - self._at
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TOKEN
                if cut and held < _LONGEST and self._more(max(_CHUNK, held)):  # doubling keeps this linear
                    continue
                ends = "; the file ends there: is it whole?" if cut and self._ended else ""
                self._fail(f"not valid JSON ({error.msg}){ends}", here=True)
            if end == len(self._text) and self._more(_CHUNK):  # a number might go on
                continue
            self._at = end
            self._number += 1
            return Element(self._number - 1, value, self._read)

    def _fail(self, what: str, here: bool = False) -> None:
        raise UserError(f"{self._path}: {'' if here else 'behind '}row {self._number - (not here)} (from 0): {what}")


# ---- a row -----------------------------------------------------------------------------------------------------------------


def read(value: Any, where: str) -> tuple[tuple[str, ...], tuple[Turn, ...], tuple[str, ...]]:
    """Return one value of the list as a row: its images, its turns, and what was unusual about it.

    Args:
        value: the value.
        where: file and row, for messages.

    Raises:
        Skip: for a row that is left out.
        UserError: for a value that is no row of LLaVA's, or an image outside the image folder.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object, got {type(value).__name__}")
    said = value.get("conversations")
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise UserError(f"{where}: 'conversations' must be a list of objects {{from, value}}, got {_short(said)}")
    if value.get("video"):
        raise Skip("shows a video")
    shown = _images(value.get("image"), where)
    changed: list[str] = []
    turns = _turns(said, where, changed)
    _check(turns)
    return shown, _marked(turns, len(shown), changed), tuple(changed)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _images(value: Any, where: str) -> tuple[str, ...]:
    """Return the keys of a row's images."""
    named = value if isinstance(value, list) else [] if value is None or value == "" else [value]
    for key in named:
        if not isinstance(key, str) or not key:
            raise UserError(f"{where}: 'image' must be a path or a list of paths, got {_short(value)}")
        if not images.is_inside(key):
            raise UserError(f"{where}: the image {key!r} is not inside the image folder; allowed: a relative path without '..'")
        if not _is_unicode(key):
            raise Skip("holds half a surrogate pair, which is no Unicode text")
    return tuple(named)


def _turns(said: list[dict[str, Any]], where: str, changed: list[str]) -> list[Turn]:
    """Return the pairs of question and reply."""
    spoken = []
    for each in said:
        speaker, text = each.get("from"), each.get("value")
        if not isinstance(text, str):
            raise UserError(f"{where}: 'value' must be text, got {_short(text)}")
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            raise UserError(f"{where}: {unknown('speaker', str(speaker), _SPEAKERS)}")
        spoken.append((_SPEAKERS[speaker], text))
    if spoken and spoken[0][0] == "gpt":
        changed.append("began with gpt; read from the first human turn on")
        spoken = spoken[1:]
    if spoken and spoken[-1][0] == "human":
        changed.append("ended with a question; read without it")
        spoken = spoken[:-1]
    if not spoken:
        raise Skip("has no reply")
    if any(speaker != ("human", "gpt")[place % 2] for place, (speaker, _) in enumerate(spoken)):
        raise Skip("has two turns of one speaker in a row")
    return [Turn(spoken[k][1], spoken[k + 1][1]) for k in range(0, len(spoken), 2)]


def _check(turns: list[Turn]) -> None:
    """Leave out rows of which something could not be learned."""
    for turn in turns:
        if not turn.assistant.strip():
            raise Skip("has an empty reply")
        if IMAGE in turn.assistant:
            raise Skip(f"has {IMAGE} in a reply")
        if not _is_unicode(turn.user + turn.assistant):
            raise Skip("holds half a surrogate pair, which is no Unicode text")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _marked(turns: list[Turn], shown: int, changed: list[str]) -> tuple[Turn, ...]:
    """Return turns whose marks fit their images, one for one."""
    marks = [turn.user.count(IMAGE) for turn in turns]
    if shown == 1 and sum(marks) > 1 and sum(count > 0 for count in marks) == 1:
        changed.append("marked its one image several times in one turn; read as one mark")
        marks = [min(count, 1) for count in marks]
    if sum(marks) != shown:
        raise Skip(f"has {'more' if sum(marks) > shown else 'fewer'} marks {IMAGE} than images")
    if shown != 1:
        return tuple(turns)
    return tuple(Turn(_in_front(turn.user), turn.assistant) if IMAGE in turn.user else turn for turn in turns)


def _in_front(text: str) -> str:
    """Put the mark before the text, as LLaVA's ``preprocess_multimodal`` does."""
    return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()
