"""Two models' logits are compared over one real vocabulary, or not at all."""

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
