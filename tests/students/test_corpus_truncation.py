"""What a length limit cuts is counted, and no row loses all of its supervised tokens without a word."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from harness.base import UserError
from students.data.conversations import Conversation, NothingToLearn, Row, Turn
from students.data.truncation import counts, line, take


class Words:
    """A reader of words: those of replies, and one that ends each, are supervised."""

    def row(self, conversation, pictures, limit=None):
        flags = []
        for turn in conversation.turns:
            flags += [False] * len(turn.user.split()) + [True] * (len(turn.assistant.split()) + 1)
        supervised = np.array(flags)
        first = int(supervised.argmax())
        if limit is not None and first >= limit:
            raise NothingToLearn(conversation.id, limit, first)
        cut = 0 if limit is None else int(supervised[limit:].sum())
        return Row(np.zeros(len(flags), np.int64)[:limit], supervised[:limit], {}, len(pictures), cut, first)


class Rows(list):
    """A corpus in memory."""

    name, digest = "c", "0"

    @property
    def shows(self):
        return np.array([len(row.images) for row in self], np.int16)

    def picture(self, key):
        return np.zeros((2, 2, 3), np.uint8)


def row(name, user, assistant, image=False):
    return Conversation(name, "c", ("i",) if image else (), (Turn(user, assistant),))


CORPUS = Rows([
    row("short", "a b", "c"), row("lost", "a b c d e", "f"), row("picture", "a", "b", image=True),
    row("gone", "a b c d e f", "g"), row("cut", "a b c", "d e f g"), row("wide", "a b c d e", "b", image=True),
])  # fmt: skip


def test_a_row_that_loses_everything_stops_the_training_and_is_named():
    assert take(CORPUS, Words(), 4, 5).conversation.id == "cut"
    with pytest.raises(UserError, match=r"row 'lost' has 5 tokens before its first reply, so a limit of 5 leaves nothing"):
        take(CORPUS, Words(), 1, 5)


def test_or_the_next_row_of_its_kind_takes_its_place():
    found = [take(CORPUS, Words(), index, 5, "replace") for index in range(6)]
    assert [each.index for each in found] == [0, 4, 2, 4, 4, 2]
    assert [each.replaced for each in found] == [(), ("lost", "gone"), (), ("gone",), (), ("wide",)]
    assert [each.conversation.id for each in found] == [CORPUS[each.index].id for each in found]
    assert [len(each.pictures) for each in found] == [0, 0, 1, 0, 0, 1]
    again = take(CORPUS, Words(), 1, 5, "replace")
    assert (again.index, again.replaced) == (found[1].index, found[1].replaced), "whatever was read before"


def test_rows_that_are_all_too_long_are_an_error():
    with pytest.raises(UserError, match=r"64 rows in a row are too long for max_length 1; the last: row"):
        take(CORPUS, Words(), 0, 1, "replace")


def test_everything_is_counted():
    found = [take(CORPUS, Words(), index, 5, "replace") for index in (0, 1, 2, 4)]
    total = counts(found)
    assert total == {
        "rows": 4, "images": 1, "text_only_rows": 3, "supervised_tokens": 2 + 2 + 2 + 2, "cut_rows": 2, "cut_tokens": 6,
        "replaced_rows": 2,
    }  # fmt: skip
    whole = sum(int(Words().row(each.conversation, []).supervised.sum()) for each in found)
    assert total["supervised_tokens"] + total["cut_tokens"] == whole, "kept and cut are all there was"
    assert Counter(counts(found[:1])) + Counter(counts(found[1:])) == Counter(total), "sums may be summed"
    said = line(total)
    assert "2 of 4 rows lost 6 supervised tokens (43 %)" in said
    assert "2 rows had nothing left to learn, and the next of their kind took their place" in said


def test_without_a_limit_nothing_is_cut():
    found = [take(CORPUS, Words(), index, None) for index in range(6)]
    assert [each.index for each in found] == list(range(6))
    assert line(counts(found)) == ""


def test_a_reader_that_trains_on_nothing_is_a_bug():
    class Careless(Words):
        def row(self, conversation, pictures, limit=None):
            return Row(np.zeros(3, np.int64), np.zeros(3, bool), {}, 0, 0, 3)

    with pytest.raises(RuntimeError, match="without supervised tokens"):
        take(CORPUS, Careless(), 0, 5)
