"""Truth tables of lmms-eval's parsers: which replies score, and which name no answer at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import toys

import tasks
from tasks import bridge, parsers

# benchmark, number of the toy question, reply -> (prediction, score, unparseable)
TABLE = {
    ("scienceqa", 0): {
        "A": ("A", 1, False), "a": ("A", 1, False), "A.": ("A", 1, False), "A. a cup": ("A", 1, False), " A ": ("A", 1, False),
        "B": ("B", 0, False), "B. a cup": ("B", 0, False), "A: a cup": ("", 0, True), "(A)": ("", 0, True), "A)": ("", 0, True),
        "The answer is A.": ("", 0, True), "a cup": ("", 0, True), "": ("", 0, True), "C": ("C", 0, True), "?": ("?", 0, True),
    },
    ("mmbench", 0): {
        "B": ("B", 1, False), "B.": ("B", 1, False), "B. green": ("B", 1, False), "(B)": ("B", 1, False),
        "The answer is B": ("B", 1, False),
        "green": ("B", 1, False), "It is green.": ("B", 1, False), "A": ("A", 0, False), "red": ("A", 0, False),
        "b": ("", 0, True), "A or B": ("A", 0, False), "": ("", 0, True), "E": ("E", 0, True),
    },
    ("pope", 0): {
        "yes": ("yes", 1, False), "Yes": ("yes", 1, False), " yes ": ("yes", 1, False), "no": ("no", 0, False),
        "Yes.": ("yes.", 0, True), "Yes, there is a dog": ("yes, there is a dog", 0, True), "": ("", 0, True),
    },
    ("mme", 0): {
        "Yes": ("yes", 1, False), "yes.": ("yes", 1, False), "Yes, it is": ("yes", 1, False), "y": ("yes", 1, False),
        "n": ("no", 0, False),
        "The answer is yes": ("", 0, True), "not sure": ("no", 0, False), "": ("", 0, True),
    },
    ("gqa", 0): {
        "yellow": ("yellow", 1, False), "Yellow.": ("yellow", 1, False), "the yellow": ("the yellow", 0, False),
        "yellow color": ("yellow color", 0, False), "": ("", 0, True), ".": ("", 0, True),
    },
    ("textvqa", 0): {
        "stop": ("stop", 1, False), "Stop.": ("stop", 1, False), "the stop": ("stop", 1, False),
        "stop sign": ("stop sign", 0, False),
        "": ("", 0, True),
    },
}  # fmt: skip


@pytest.mark.parametrize(("benchmark", "number"), TABLE)
def test_truth_table(benchmark, number):
    protocol, questions = tasks.protocol(f"{benchmark}@miniature"), toys.questions(benchmark)
    task = bridge.build(protocol, questions)
    doc = bridge.Docs(questions, pictures=False)[number]
    found = {}
    for reply in TABLE[benchmark, number]:
        record = task.process_results(bridge.Docs(questions, pictures=False)[number], [reply])
        found[reply] = tuple(parsers.READERS[protocol.score](doc, record, reply))
    assert found == TABLE[benchmark, number]


def test_textvqa_gives_part_credit_to_minority_answers():
    protocol, questions = tasks.protocol("textvqa@miniature"), toys.questions("textvqa")
    replies = [{"id": q.id, "reply": "go"} for q in questions.questions]
    rows = tasks.score(protocol, replies, questions).rows
    # 0, 3 and 6 of ten people said "go": mean over people of min(1, others who agree / 3)
    assert rows["score"].tolist()[:3] == pytest.approx([0.0, (3 * 2 / 3 + 7 * 1) / 10, 1.0])


def test_mmbench_scores_one_question_as_its_evaluator_scores_a_group_of_one():
    protocol, questions = tasks.protocol("mmbench@miniature"), toys.questions("mmbench")
    task = bridge.build(protocol, questions)
    evaluator = parsers.engine.MMBench_Evaluator()
    import pandas as pd

    for reply in TABLE["mmbench", 0]:
        for number, question in enumerate(questions.questions):
            record = task.process_results(bridge.Docs(questions, pictures=False)[number], [reply])
            item = record["gpt_eval_score"]
            expected = evaluator.eval_sub_data(pd.DataFrame([item]), {item["index"]: item["answer"]}, static_only=True)
            assert parsers.READERS["mmbench_static"](question.doc, record, reply).score == expected, (reply, number)


def test_three_options_do_not_match_a_missing_fourth():
    """lmms-eval reads the text 'nan' as an option, and finds it in 'banana'; None is none."""
    protocol, questions = tasks.protocol("mmbench@miniature"), toys.questions("mmbench")
    base = replace(questions.questions[4], doc={**questions.questions[4].doc, "A": "banana", "B": "apple", "answer": "A"})
    alone = replace(questions, questions=(base,))
    assert tasks.score(protocol, [{"id": base.id, "reply": "banana"}], alone).value == 100.0
