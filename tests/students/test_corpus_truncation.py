"""What a length limit cuts is counted, and no row loses all of its supervised tokens without a word."""

from __future__ import annotations

import numpy as np
import pytest

from harness.base import UserError
from students.data.conversations import Conversation, NothingToLearn, Row, Turn
from students.data.truncation import Truncation


class Words:
    """A reader of words: those of replies are supervised."""

    def row(self, conversation, pictures, limit=None):
        ids, supervised = [], []
        for turn in conversation.turns:
            ids += [0] * len(turn.user.split()) + [1] * (len(turn.assistant.split()) + 1)
            supervised += [False] * len(turn.user.split()) + [True] * (len(turn.assistant.split()) + 1)
        flags = np.array(supervised)
        first = int(flags.argmax())
        if limit is not None and first >= limit:
            raise NothingToLearn(conversation.id, limit, first)
        cut = 0 if limit is None else int(flags[limit:].sum())
        return Row(np.array(ids)[:limit], flags[:limit], {}, len(pictures), cut, first)


def row(name, user, assistant):
    return Conversation(name, "c", (), (Turn(user, assistant),))


ROWS = [
    row("short", "a b", "c"),
    row("cut", "a b c", "d e f g"),
    row("lost", "a b c d e", "f"),
    row("gone", "a b c d e f", "g"),
]


def test_rows_that_lose_everything_stop_the_training_and_are_named():
    truncation = Truncation()
    for each in ROWS[:2]:
        assert truncation.read(Words(), each, [], 5) is not None
    with pytest.raises(
        UserError, match=r"row 'lost' has 5 tokens before its first reply, so a limit of 5 leaves nothing.*max_length"
    ):
        truncation.read(Words(), ROWS[2], [], 5)


def test_everything_is_counted():
    truncation = Truncation("skip")
    read = [truncation.read(Words(), each, [], 5) for each in ROWS]
    assert [each is None for each in read] == [False, False, True, True]
    assert truncation.facts() == {
        "overlong": "skip", "rows": 4, "supervised_tokens": 2 + 2, "cut_rows": 1, "cut_supervised_tokens": 3, "skipped_rows": 2,
        "first_skipped": ["lost", "gone"],
    }  # fmt: skip
    whole = sum(int(Words().row(each, []).supervised.sum()) for each in ROWS[:2])
    assert truncation.tokens + truncation.cut_tokens == whole, "kept and cut are all there was"
    line = truncation.line()
    assert "1 of 4 rows lost 3 supervised tokens (43 %)" in line
    assert "2 had nothing left to learn and were left out, first lost, gone" in line


def test_without_a_limit_nothing_is_cut():
    truncation = Truncation()
    for each in ROWS:
        truncation.read(Words(), each, [], None)
    assert (truncation.rows, truncation.cut_rows, truncation.skipped_rows, truncation.line()) == (4, 0, 0, "")


def test_counts_go_on_after_a_resume():
    whole, first = Truncation("skip"), Truncation("skip")
    for number, each in enumerate(ROWS * 3):
        whole.read(Words(), each, [], 5)
        if number < 5:
            first.read(Words(), each, [], 5)
    again = Truncation.of(first.facts())
    for each in (ROWS * 3)[5:]:
        again.read(Words(), each, [], 5)
    assert again.facts() == whole.facts()
    assert first.facts() != whole.facts(), "the copy shares nothing with what it was made of"
    with pytest.raises(UserError, match="lack 'rows'"):
        Truncation.of({"overlong": "stop"})


def test_a_reader_that_trains_on_nothing_is_a_bug():
    class Careless(Words):
        def row(self, conversation, pictures, limit=None):
            return Row(np.zeros(3, np.int64), np.zeros(3, bool), {}, 0, 0, 3)

    with pytest.raises(RuntimeError, match="without supervised tokens"):
        Truncation("skip").read(Careless(), ROWS[0], [], 5)
