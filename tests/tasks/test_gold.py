"""Gold files in every published format: recognised by content, keyed as replies name them, refused where they are none."""

from __future__ import annotations

import csv
import json

import pytest
from real import GOLD, ROOT, lines, needs_data

import tasks
from harness.base import UserError

LABELS = {"question_id": 1, "image": "COCO_1.jpg", "text": "Is there a dog in the image?", "label": "yes"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(name, path):
    return tasks.gold(tasks.protocol(name), path)


def test_llavas_conversations(tmp_path):
    def entry(name, text, letter, **more):
        return {"id": name, "conversations": [{"value": text}, {"value": letter}], **more}

    rows = [
        entry("4", "Context: It is.\nWhich?\nA. a cup\nB. a dog", "B"),
        entry("7", "<image>\nWhich closing?\nA. Love,\nZoe\nB. love,\nZoe", "A", image="7/image.png"),
    ]
    path = tmp_path / "gold.json"
    path.write_text(json.dumps(rows))
    gold = read("scienceqa@img", path)
    (question,) = gold.questions
    assert (question.id, question.answer, question.doc["choices"]) == ("7", "A", ["Love,\nZoe", "love,\nZoe"])
    assert question.doc["question"] == "Which closing?"
    assert gold.left_out == {"4": "outside scienceqa@img"}
    assert gold.keys == {("4",): "4", ("7",): "7"}
    assert gold.order == ("7",)
    assert [q.answer for q in read("scienceqa@all", path).questions] == ["B", "A"]


def test_gqas_dictionary(tmp_path):
    path = tmp_path / "gold.json"
    path.write_text(
        json.dumps({"20": {"question": "What?", "answer": "couch", "imageId": "n5", "types": {"structural": "query"}}})
    )
    (question,) = read("gqa@llava", path).questions
    assert (question.id, question.answer, question.cluster, question.group) == ("20", "couch", "n5", "query")


def test_textvqas_annotations_also_by_image_and_question(tmp_path):
    row = {"question_id": 34602, "image_id": "003a", "question": "What brand?", "answers": ["dakota"] * 7 + ["nous"] * 3}
    path = tmp_path / "gold.json"
    path.write_text(json.dumps({"data": [row]}))
    gold = read("textvqa@ocr", path)
    assert gold.questions[0].answer == "dakota"
    assert gold.keys == {("34602",): "34602", ("003a", "what brand?"): "34602"}


def test_popes_label_files(tmp_path):
    for split in ("random", "popular"):
        write(tmp_path / f"coco_pope_{split}.json", [LABELS, {**LABELS, "question_id": 2, "label": "no"}])
    gold = read("pope@mean-f1", tmp_path)
    assert [q.id for q in gold.questions] == ["popular/1", "popular/2", "random/1", "random/2"]
    assert gold.keys["random", "2"] == "random/2"
    assert {q.cluster for q in gold.questions} == {"COCO_1"}
    assert len(read("pope@mean-f1", tmp_path / "coco_pope_random.json").questions) == 2
    assert not any(len(key) == 1 for key in gold.keys), "LLaVA's numbers mean nothing for other label files"


def test_mmes_folder(tmp_path):
    text = "0001.jpg\tIs it?  Please answer yes or no.\tYes\r\n0001.jpg\tIs it not\tNo\n"
    (tmp_path / "count.txt").write_text(text)
    (tmp_path / "code_reasoning.txt").write_text(text)
    gold = read("mme@perception", tmp_path)
    assert gold.keys["count/0001.jpg", "Is it?"] == gold.questions[0].id
    assert [q.answer for q in gold.questions] == ["yes", "no"]
    assert len(gold.left_out) == 2
    assert {q.cluster for q in gold.questions} == {"count/0001.jpg"}


MMBENCH = {
    "index": 241,
    "question": "Q?",
    "hint": None,
    "A": "x",
    "B": "y",
    "C": "z",
    "D": None,
    "answer": "B",
    "category": "ocr",
}


def test_mmbench_rows_in_any_table(tmp_path):
    rows = [MMBENCH, {**MMBENCH, "index": 1_000_241, "answer": "A"}]
    want = None
    for name in ("gold.jsonl", "gold.json", "gold.csv", "gold.tsv", "gold.parquet"):
        path = tmp_path / name
        if name.endswith("jsonl"):
            write(path, rows)
        elif name.endswith("json"):
            path.write_text(json.dumps(rows))
        elif name.endswith("parquet"):
            import pandas as pd

            pd.DataFrame(rows).to_parquet(path)
        else:
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
                table.writeheader()
                table.writerows({k: "nan" if v is None else v for k, v in row.items()} for row in rows)
        gold = read("mmbench@circular", path)
        found = [(q.id, q.cluster, q.group, q.answer, q.doc["A"], q.doc["D"], q.doc["hint"]) for q in gold.questions]
        want = want or found
        assert found == want == [
            ("241", "241", "ocr", "B", "x", None, None), ("1000241", "241", "ocr", "A", "x", None, None)
        ], name  # fmt: skip
    assert read("mmbench@vanilla", path).left_out == {"1000241": "outside mmbench@vanilla"}


def test_records_are_named_by_position(tmp_path):
    row = {
        "group": "random",
        "prompt": "Is there a dog?\nAnswer with Yes or No only.",
        "ground_truth": "No",
        "prediction": "Yes",
    }
    path = write(tmp_path / "records.jsonl", [row, {**row, "ground_truth": "Yes"}])
    gold = read("pope@accuracy", path)
    assert gold.whole
    assert [(q.answer, q.group, q.doc["question"]) for q in gold.questions] == [
        ("no", "random", "Is there a dog?"), ("yes", "random", "Is there a dog?")
    ]  # fmt: skip
    assert len(gold.order) == 2


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("gqa@llava", [{"question_id": "1", "text": "Is it?"}], "no gold answers to score by"),
        ("gqa@llava", [{"a": 1}], "not a gold file of gqa. Known formats: "),
        (
            "pope@mean-f1",
            [{**LABELS, "category": "random", "label": "maybe"}],
            "row 1: the answer is 'maybe', expected yes or no",
        ),
        ("mmbench@circular", [{**MMBENCH, "answer": "E"}], "the answer is 'E'"),
        ("mmbench@circular", [{**MMBENCH, "answer": "D"}], "an option that is not there"),
        ("mmbench@circular", [{**MMBENCH, "index": "x"}], "the index is 'x'"),
        ("mmbench@circular", [MMBENCH, MMBENCH], "two rows are called 241"),
        ("textvqa@ocr", [{"question_id": 1, "answers": ["a"]}], "expected ten answers, got 1"),
        ("scienceqa@all", [{"question": "?", "choices": ["a", "b"], "answer": 2}], "the answer is 2"),
        ("mme@cognition", [{"question_id": "count/1.jpg", "question": "?", "answer": "No"}], "none of its 1 rows"),
    ],
)
def test_what_is_no_gold_is_refused(tmp_path, name, rows, message):
    with pytest.raises(UserError) as caught:
        read(name, write(tmp_path / "gold.jsonl", rows))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_name_the_line(tmp_path):
    cases = {
        "gold.jsonl": ('{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        "gold.json": ('{"a": ', "not valid JSON"),
        "gold.tsv": ("index\tanswer\n1\tA\tB\n", "line 2: 3 fields, but the header names 2 columns"),
        "gold.parquet": ("PAR1", "cannot be read as parquet"),
        "empty.jsonl": ("", "is empty"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            read("mmbench@circular", tmp_path / name)
    (tmp_path / "bytes.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read("mmbench@circular", tmp_path / "bytes.jsonl")
    with pytest.raises(UserError, match="does not exist"):
        read("mmbench@circular", tmp_path / "nothing.jsonl")
    (tmp_path / "mme").mkdir()
    (tmp_path / "mme" / "count.txt").write_text("1.jpg\tIs it?\n")
    with pytest.raises(UserError, match=r"count\.txt, line 1: expected image, question and answer"):
        read("mme@perception", tmp_path / "mme")


# ---- the real files ----------------


@needs_data
def test_every_real_gold_file_is_read():
    counts = {
        "scienceqa@all": (GOLD["scienceqa"], 4241, 0), "scienceqa@img": (GOLD["scienceqa"], 2017, 2224),
        "gqa@llava": (GOLD["gqa"], 1733, 0), "textvqa@ocr": (GOLD["textvqa"], 5000, 0), "pope@mean-f1": (GOLD["pope"], 8910, 0),
        "mmbench@circular": (GOLD["mmbench"], 4377, 0), "mmbench@vanilla": (GOLD["mmbench"], 1176, 3201),
        "mme@perception": (GOLD["mme"], 2114, 260), "mme@cognition": ("mme/cases/LaVIN", 260, 2114),
    }  # fmt: skip
    for name, (path, counted, left) in counts.items():
        gold = read(name, ROOT / path)
        assert (len(gold.questions), len(gold.left_out)) == (counted, left), name
        assert len(gold.order) == counted


@needs_data
def test_scienceqas_joined_rows_hold_what_the_structured_ones_hold():
    joined = {q.id: q for q in read("scienceqa@all", ROOT / GOLD["scienceqa"]).questions}
    for question in read("scienceqa@all", ROOT / "scienceqa/common/test_docs_structured.jsonl").questions:
        other = joined[question.id]
        assert (other.answer, len(other.doc["choices"])) == (question.answer, len(question.doc["choices"]))


@needs_data
def test_llavas_pope_numbers_mean_its_own_labels_only():
    """Its file numbers random from 10,000,001: those numbers would name other questions of the newer labels."""
    gold = read("pope@mean-f1", ROOT / GOLD["pope"])
    docs = {q.id: q.doc for q in gold.questions}
    for row in lines("pope/common/llava_pope_test.jsonl"):
        doc = docs[gold.keys[(str(row["question_id"]),)]]
        assert (doc["image"], doc["question"]) == (row["image"], row["text"].split("\n")[0])
    assert ("random", "10000001") not in read("pope@mean-f1-3000", ROOT / "pope/common/labels_main_3000x3").keys
