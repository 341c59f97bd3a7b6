"""Two models' logits are compared over one real vocabulary, or not at all."""

import numpy as np
import pytest

from harness.base import UserError
from students import vocabulary


class Tokenizer:
    def __init__(self, known):
        self.known = known

    def get_vocab(self):
        return self.known


def test_tokens_come_in_id_order():
    assert vocabulary.tokens(Tokenizer({"b": 1, "a": 0, "c": 2})) == ("a", "b", "c")


def test_gaps_are_refused():
    with pytest.raises(UserError, match=r"id\(s\) 1"):
        vocabulary.tokens(Tokenizer({"a": 0, "c": 2}))


def test_padded_heads_are_cut_to_the_real_vocabulary():
    assert vocabulary.check("abc", "abc", 8, 4) == 3


@pytest.mark.parametrize(
    ("student", "teacher", "named"),
    [
        ("abc", "abd", "id 2: 'c' against 'd'"),
        ("abc", "ab", "only the student has 'c'"),
        ("a", "ab", "only the teacher has 'b'"),
    ],
)
def test_different_tokenizers_name_what_differs(student, teacher, named):
    with pytest.raises(UserError, match=named):
        vocabulary.check(student, teacher, 8, 8)


def test_a_head_narrower_than_its_vocabulary_is_refused():
    with pytest.raises(UserError, match="teacher's head has 2 logits for 3 tokens"):
        vocabulary.check("abc", "abc", 3, 2)


@pytest.mark.parametrize(
    ("student", "teacher", "shared"),
    [
        (["a", "b", "<image>"], ["a", "b"], 2),
        (["a", "b", "<image>", "<pad>"], ["a", "b", "<|tool|>"], 2),
        (["a", "b", "<|im_end|>", "<image>"], ["a", "b", "<|im_end|>", "[IMG_1]"], 3),
    ],
)
def test_marks_at_the_end_may_differ(student, teacher, shared):
    assert vocabulary.check(student, teacher, 8, 8) == shared
    assert vocabulary.check(teacher, student, 8, 8) == shared


@pytest.mark.parametrize("tail", ["c", "< image", "image>", "<a b>", "[x]", "<"])
def test_words_at_the_end_may_not(tail):
    with pytest.raises(UserError, match=f"only the student has {tail!r}".replace("[", r"\[")):
        vocabulary.check(["a", "b", tail], ["a", "b"], 8, 8)
    with pytest.raises(UserError, match="different tokenizers"):
        vocabulary.check(["a", "<image>", "b"], ["a", "<pad>", "b"], 8, 8)


def test_nothing_but_marks_is_no_vocabulary():
    with pytest.raises(UserError, match="different tokenizers"):
        vocabulary.check(["<a>"], ["<b>"], 8, 8)


def test_two_tokens_with_one_id_are_refused():
    with pytest.raises(UserError, match="several tokens one id"):
        vocabulary.tokens(Tokenizer({"a": 0, "b": 0}))


def test_labels_beyond_what_is_shared_are_named():
    vocabulary.refuse_beyond(np.array([0, 1]), 2, ("a", "b", "<end>"))
    with pytest.raises(UserError, match="replies contain '<end>', id 9, which student and teacher do not share"):
        vocabulary.refuse_beyond(np.array([0, 2, 9, 2]), 2, ("a", "b", "<end>"))
