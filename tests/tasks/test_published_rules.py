"""Truth tables of the published reply parsers, the awkward replies included, and their scores."""

from __future__ import annotations

import pytest

from tasks import published, rules
from tasks.protocols import mmbench, textvqa

LONG = "word " * 2000  # 10,000 characters
DOCS = {
    "scienceqa": {"choices": ["a cup", "a dog", "a tree"], "answer": 0},
    "gqa": {"answer": "yellow"},
    "textvqa": {"answers": ["stop"] * 8 + ["Stop sign", "go"]},
    "pope": {"answer": "yes"},
    "mmbench": {"index": 11, "A": "red", "B": "green", "C": "blue", "D": "black", "answer": "B"},
    "mme": {"answer": "Yes", "category": "count"},
}
RULES = {
    "scienceqa": ("letter", "right"), "gqa": ("plain", "same"), "textvqa": ("reply", "soft"),
    "pope": ("first_sentence", "same"), "mmbench": ("choice", "right"), "mme": ("prefix", "same"),
}  # fmt: skip
# reply -> (prediction, score, unparseable)
TABLE = {
    "scienceqa": {
        "A": ("A", 1, False), " A ": ("A", 1, False), "A. a cup": ("A", 1, False), "The answer is A.": ("A", 1, False),
        "The answer is A because": ("A", 1, False), "B": ("B", 0, False),
        "a": ("", 0, True), "A.": ("", 0, True), "(A)": ("", 0, True), "A)": ("", 0, True), "A: a cup": ("", 0, True),
        "The answer is A": ("", 0, True), "the answer is A.": ("", 0, True), "The answer is Apple": ("A", 1, False),
        "The answer is A. The answer is B.": ("", 0, True), "A or B": ("", 0, True), "D": ("", 0, True), "E": ("", 0, True),
        "AA": ("", 0, True), "a cup": ("", 0, True), "": ("", 0, True), "Yes.": ("", 0, True), "答案是A": ("", 0, True),
        "😀": ("", 0, True), LONG: ("", 0, True), "It is the first one, a cup.": ("", 0, True),
    },
    "gqa": {
        "yellow": ("yellow", 1, False), "Yellow": ("yellow", 1, False), "Yellow.": ("yellow", 1, False),
        "yellow...": ("yellow", 1, False), "yellow!": ("yellow!", 0, False), "the yellow": ("the yellow", 0, False),
        "The color is yellow.": ("the color is yellow", 0, False), "yellow or blue": ("yellow or blue", 0, False),
        "Gelb": ("gelb", 0, False), "😀": ("😀", 0, False), "": ("", 0, True), ".": ("", 0, True),
        LONG: (LONG.strip(), 0, False),
    },
    "textvqa": {
        "stop": ("stop", 1, False), "STOP": ("stop", 1, False), "Stop.": ("stop", 1, False), "the stop": ("stop", 1, False),
        "stop\n": ("stop", 1, False), "stop sign": ("stop sign", 0.3, False), "stop or go": ("stop or go", 0, False),
        "It says stop.": ("it says stop", 0, False), "停止": ("停止", 0, False), "😀": ("😀", 0, False), "": ("", 0, True),
        "?": ("", 0, True), "the": ("", 0, True), "none": ("0", 0, False), LONG: (LONG.strip(), 0, False),
    },
    "pope": {
        "yes": ("yes", 1, False), "Yes": ("yes", 1, False), "Yes.": ("yes", 1, False), "YES": ("yes", 1, False),
        "Yes, there is a dog.": ("yes", 1, False), "no": ("no", 0, False), "No.": ("no", 0, False),
        "No, there is no dog": ("no", 0, False), "There is not": ("no", 0, False), "Yes. But not here.": ("yes", 1, False),
        "not sure": ("no", 0, False), "NO": ("yes", 1, True), "no!": ("yes", 1, True), "Nein": ("yes", 1, True),
        "isn't": ("yes", 1, True), "": ("yes", 1, True), "A": ("yes", 1, True), "😀": ("yes", 1, True),
        "是": ("yes", 1, True), "There is a dog.": ("yes", 1, True), LONG: ("yes", 1, True),
    },
    "mmbench": {
        "B": ("B", 1, False), "B.": ("B", 1, False), "B. green": ("B", 1, False), "(B)": ("B", 1, False), "B)": ("B", 1, False),
        "The answer is B": ("B", 1, False), "The answer is B.": ("B", 1, False), "green": ("B", 1, False),
        "It is green.": ("B", 1, False), "Green": ("B", 1, False), "A": ("A", 0, False), "The answer is A.": ("A", 0, False),
        "red": ("A", 0, False), "A green one is here": ("B", 1, False), "b": ("", 0, True), "A or B": ("", 0, True),
        "red or green": ("", 0, True), "E": ("", 0, True), "": ("", 0, True), "Yes.": ("", 0, True), "答案是B": ("", 0, True),
        "😀": ("", 0, True), LONG: ("", 0, True),
    },
    "mme": {
        "Yes": ("yes", 1, False), "yes.": ("yes", 1, False), "Yes, it is": ("yes", 1, False), "YES": ("yes", 1, False),
        " yes": ("yes", 1, False), "No": ("no", 0, False), "no, it is not": ("no", 0, False), "not sure": ("no", 0, False),
        "none": ("no", 0, False), "I know": ("", 0, True), "y": ("", 0, True), "n": ("", 0, True),
        "The answer is yes": ("", 0, True), "A": ("", 0, True), "": ("", 0, True), "Ja": ("", 0, True), "😀": ("", 0, True),
        "Sí": ("", 0, True), LONG: ("", 0, True),
    },
}  # fmt: skip


@pytest.mark.parametrize("benchmark", TABLE)
def test_truth_table(benchmark):
    parser, score = (rules.rule("", f"{benchmark}.{name}") for name in RULES[benchmark])
    doc = DOCS[benchmark]
    found = {}
    for reply in TABLE[benchmark]:
        prediction, named = parser(reply, doc)
        found[reply] = published.Reading(prediction, score(prediction, doc), not named)
    assert found == TABLE[benchmark]


def test_every_published_parser_has_a_truth_table():
    import tasks

    protocols = [tasks.protocol(name) for name in tasks.names()]
    used = {p.parser for p in protocols if p.scorer == "published"}
    assert used == {f"{benchmark}.{RULES[benchmark][0]}" for benchmark in TABLE}


# ---- MMBench ----------------


def test_a_letter_that_is_no_option_is_no_answer():
    doc = {"index": 1, "A": "two", "B": "three", "C": None, "D": None, "answer": "A"}
    assert mmbench.choice("C", doc) == ("", False)
    assert mmbench.choice("A", doc) == ("A", True)


def test_a_missing_option_is_not_found_in_a_reply():
    """lmms-eval's text "nan" is found in "banana"."""
    doc = {"index": 1, "A": "banana", "B": "apple", "C": None, "D": None, "answer": "A"}
    assert mmbench.choice("banana", doc) == ("A", True)


def test_records_without_options_take_the_letters_a_to_d():
    doc = {"question": "cut", "answer": "B", "record": "7"}
    assert mmbench.choice("B.", doc) == ("B", True)
    assert mmbench.base(doc, True)


def test_a_long_sentence_with_the_article_a_is_no_answer_a():
    doc = DOCS["mmbench"]
    assert mmbench.choice("A dog stands over there", doc) == ("", False)
    assert mmbench.choice("A dog and B", doc) == ("", False)


def test_rotations_are_the_rows_from_a_million():
    assert mmbench.base({"index": 999_999}, True)
    assert not mmbench.base({"index": 1_000_241}, True)


# ---- TextVQA ----------------


@pytest.mark.parametrize(
    ("said", "score"), [("stop", 1.0), ("go", (1 * 0 + 9 * (1 / 3)) / 10), ("Stop sign", (9 * (1 / 3)) / 10), ("x", 0.0)]
)
def test_soft_accuracy_leaves_one_person_out(said, score):
    assert textvqa.soft(textvqa.normal(said), DOCS["textvqa"]) == pytest.approx(score)


def test_soft_accuracy_is_not_matches_over_all_ten():
    """min(1, matches / 3) over all ten is another rule, with visibly higher numbers."""
    doc = {"answers": ["stop"] * 3 + ["go"] * 7}
    assert textvqa.soft("stop", doc) == pytest.approx((3 * (2 / 3) + 7 * 1) / 10)


AWKWARD = [
    "", " ", "a", "The", "dont", "can't", "couldnt've", "it's 5", "two", "ten o'clock", "1,000", "1,000 / 5", "3.14", "U.S.A.",
    "end.", "a.b", "who's-that", "one; two", "[yellow tail]", "12:30", "50%", "é", "“quoted”", "x" * 300, ". " * 40, "9'99",
    "s,, prites", "3/$5", "\tthe\nsign\n", "none", "I'm", "ive", "yall'd've",
]  # fmt: skip


def test_the_normal_form_is_evalais():
    """lmms-eval ships the same published processor: every awkward answer, and the whole table, agree."""
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    theirs = EvalAIAnswerProcessor()
    words = [*AWKWARD, *theirs.CONTRACTIONS, *theirs.CONTRACTIONS.values(), *theirs.NUMBER_MAP]
    assert {word: textvqa.normal(word) for word in words} == {word: theirs(word) for word in words}
    assert textvqa._CONTRACTIONS == theirs.CONTRACTIONS
    assert set(textvqa._NUMBERS.items()) <= set(theirs.NUMBER_MAP.items())
    assert set(textvqa._MARKS) == {mark.strip("\\") or "\\" for mark in theirs.PUNCTUATIONS}
