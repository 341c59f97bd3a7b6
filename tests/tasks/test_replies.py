"""Files of replies: every format, every alias, every way a question is named, and every mistake by its line."""

import csv
import json

import pytest

import tasks
from harness.base import UserError
from tasks.replies import read

GQA = {
    "101": {"question": "Is it red?", "answer": "yes", "imageId": "n1", "types": {"structural": "verify"}},
    "102": {"question": "What is it?", "answer": "cat", "imageId": "n1", "types": {"structural": "query"}},
    "103": {"question": "Where is it?", "answer": "left", "imageId": "n2", "types": {"structural": "query"}},
}


@pytest.fixture
def gqa(tmp_path):
    """A GQA gold file of three questions, and how to read replies to it."""
    path = tmp_path / "gold.json"
    path.write_text(json.dumps(GQA))
    protocol = tasks.protocol("gqa@llava")
    gold = tasks.gold(protocol, path)

    def reads(content, name="replies.jsonl"):
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return read(file, protocol, gold)

    return reads


def lines(*rows):
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(replies):
    """What was read, as (id, reply)."""
    return [(row["id"], row["reply"]) for row in replies.rows]


WANTED = [("103", "left"), ("101", "No"), ("102", "")]


@pytest.mark.parametrize("name", ["id", "question_id", "questionId", "pid", "index"])
@pytest.mark.parametrize("said", ["reply", "prediction", "text", "answer"])
def test_every_alias_of_id_and_reply(gqa, name, said):
    assert pairs(gqa(lines(*({name: i, said: r} for i, r in WANTED)))) == WANTED


def test_ids_may_be_whole_numbers(gqa):
    assert pairs(gqa(lines(*({"id": int(i), "reply": r} for i, r in WANTED)))) == WANTED


def test_a_prediction_wins_over_what_may_be_the_question_or_the_gold(gqa):
    rows = ({"id": i, "prediction": r, "text": "What is it?", "answer": "gold"} for i, r in WANTED)
    assert pairs(gqa(lines(*rows))) == WANTED


def test_two_fields_that_may_be_the_reply_are_refused(gqa):
    with pytest.raises(UserError, match="both 'text' and 'answer' could be the reply"):
        gqa(lines(*({"id": i, "text": r, "answer": r} for i, r in WANTED)))


def test_json_lists_and_mappings(gqa):
    rows = [{"id": i, "reply": r} for i, r in WANTED]
    assert pairs(gqa(json.dumps(rows))) == WANTED
    assert pairs(gqa(json.dumps(rows, indent=1))) == WANTED
    assert pairs(gqa(json.dumps({"model": "m", "samples": rows}))) == WANTED
    assert pairs(gqa(json.dumps({"model": "m", "samples": rows}, indent=1))) == WANTED
    assert pairs(gqa(json.dumps(dict(WANTED)))) == WANTED
    assert pairs(gqa(json.dumps(dict(WANTED), indent=1))) == WANTED
    assert pairs(gqa(json.dumps({"id": "101", "reply": "x"}))) == [("101", "x")]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_tables(gqa, tmp_path, delimiter, ends):
    said = [("101", 'He said: "no, never"'), ("102", "two\nlines"), ("103", "")]
    path = tmp_path / "written.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=ends)
        writer.writerow(["question_id", "comment", "prediction"])
        writer.writerows([i, "c", r] for i, r in said)
    assert pairs(gqa(path.read_bytes(), "anything.dat")) == said  # recognised by content, not by name


def test_byte_order_mark_blank_lines_and_long_replies(gqa):
    long = "yes " * 50_000
    content = "\ufeff" + "\n".join(["", lines({"id": "101", "reply": long}), "", lines({"id": "102", "reply": "猫 🐈\u2028"})])
    assert pairs(gqa(content)) == [("101", long), ("102", "猫 🐈\u2028")]
    table = f'id,reply\n101,"{long}"\n'
    assert pairs(gqa(table)) == [("101", long)]


BAD = {
    "": "is empty",
    " \n\n": "is empty",
    '{"id": "101", "reply": "x"}\n{"id": "102", "reply": \n[1]\n': r"2 malformed line\(s\): line 2: not valid JSON .*line 3: e",
    '{"id": "101", "reply": NaN}\n{"id": "102", "reply": "x"}\n': "line 1: not valid JSON",
    '[{"id": "101", "reply": "x"}, 3]': "entry 2: expected one JSON object, got int",
    '[{"id": "101", ': "not valid JSON",
    "[]": "is empty",
    '{"id": "101"}\n': "no field holds the reply; known: reply, prediction, text, answer; found: id",
    '{"id": "101", "reply": "x"}\n{"id": "102", "prediction": "x"}\n': "line 2: the field 'reply', .* is missing",
    '{"name": "101", "reply": "x"}\n': "line 1: no field names the question; known: id, question_id",
    '{"id": "101", "reply": null}\n': "line 1: the reply is None, expected text; write '' for an empty reply",
    '{"id": "101", "reply": 3}\n': "line 1: the reply is 3, expected text",
    '{"id": "101", "reply": ["a", "b"]}\n': "the reply is \\['a', 'b'\\], expected text",
    '{"id": true, "reply": "x"}\n': "id is True, expected text or a whole number",
    '{"id": 101.0, "reply": "x"}\n': "id is 101.0, expected text or a whole number",
    '{"id": " ", "reply": "x"}\n': "id is ' ', expected text",
    "id,reply\n101,x\n102\n103,y,z\n": r"2 malformed line\(s\): line 3: 1 fields, the header has 2; line 4: 3 fields",
    "id,reply\n": "a header and no replies",
    "id,id,reply\n1,1,x\n": "the header names 'id' twice",
    'id,reply\n101,"never closed\n': "not a valid table",
    "hello\nworld\n": "neither JSON, nor MME's four",
}


@pytest.mark.parametrize("content", BAD, ids=lambda text: repr(text)[:40])
def test_malformed_files_are_named_by_line(gqa, content):
    with pytest.raises(UserError, match=BAD[content]) as caught:
        gqa(content)
    assert "replies.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_named_by_line(gqa):
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        gqa(b'{"id": "101", "reply": "x"}\n{"id": "102", "reply": "\xff"}\n')


def test_missing_file_and_folder_of_nothing(gqa, tmp_path):
    protocol, gold = tasks.protocol("gqa@llava"), tasks.gold(tasks.protocol("gqa@llava"), tmp_path / "gold.json")
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        read(tmp_path / "nowhere.jsonl", protocol, gold)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \*\.txt file"):
        read(tmp_path / "empty", protocol, gold)


def test_duplicates_and_unknown_ids_are_named(gqa):
    with pytest.raises(UserError, match=r"1 questions are answered twice: '101' \(line 1 and line 3\)"):
        gqa(lines(*({"id": i, "reply": "x"} for i in ("101", "102", "101"))))
    with pytest.raises(
        UserError, match=r"2 of 3 replies are to unknown questions: '1011' \(line 1\), did you mean '101'\?; 'zz'"
    ):
        gqa(lines(*({"id": i, "reply": "x"} for i in ("1011", "102", "zz"))))


def test_another_question_under_the_same_id_is_refused(gqa):
    asked = {"101": "is it RED ?", "102": "What is it?\nAnswer the question using a single word or phrase."}
    assert len(gqa(lines(*({"id": i, "question": q, "reply": "x"} for i, q in asked.items()))).rows) == 2
    with pytest.raises(UserError, match=r"'102' \(line 1\): it asks 'How many\?', the gold 'What is it\?'"):
        gqa(lines({"id": "102", "question": "How many?", "reply": "x"}))


# ---- lmms-eval's saved samples and rows named by position ------------------------------------------------------------------


def sample(number, reply, asked, **more):
    """One line of ``*_samples_TASK.jsonl`` as lmms-eval 0.7 writes it."""
    row = {"doc_id": number, "target": "t", "filtered_resps": reply, "doc_hash": "h", "input": f"{asked}\nAnswer shortly."}
    return {**row, **more}


def test_samples_without_an_id_are_named_by_their_place_and_checked(gqa):
    asked = [row["question"] for row in GQA.values()]
    rows = [sample(n, [f"r{n}"] if n == 1 else f"r{n}", asked[n]) for n in (2, 0, 1)]
    found = gqa(lines(*rows))
    assert pairs(found) == [("103", "r2"), ("101", "r0"), ("102", "r1")]
    assert "doc_id is the position" in found.notes[0]
    with pytest.raises(UserError, match="2 of 3 rows are about other questions"):
        gqa(lines(*(sample(n, "r", asked[n]) for n in (0,)), *(sample(n, "r", asked[3 - n]) for n in (1, 2))))
    with pytest.raises(UserError, match="'position 3'"):
        gqa(lines(sample(3, "r", "What?")))


def test_a_place_that_nothing_confirms_is_refused(gqa):
    with pytest.raises(UserError, match="names its question by position only"):
        gqa(lines({"doc_id": 0, "filtered_resps": "x"}))


def test_index_that_numbers_all_rows_is_their_place(tmp_path):
    protocol = tasks.protocol("scienceqa@img")
    asked = [{"from": "human", "value": "<image>\nWhich?\nA. one\nB. two"}, {"from": "gpt", "value": "B"}]
    texts = [{"id": f"{n}", "conversations": asked, **({"image": "x.png"} if n != 7 else {})} for n in (5, 7, 0)]
    (tmp_path / "gold.json").write_text(json.dumps(texts))
    gold = tasks.gold(protocol, tmp_path / "gold.json")
    path = tmp_path / "replies.json"
    path.write_text(json.dumps({"samples": [{"index": n, "prediction": p, "label": "B"} for n, p in ((0, "A"), (1, "B"))]}))
    found = read(path, protocol, gold)
    assert pairs(found) == [("5", "A"), ("0", "B")]
    assert "'index' numbers all 2 rows" in found.notes[0]
    path.write_text(json.dumps({"samples": [{"index": n, "prediction": "A", "label": "A"} for n in (0, 1)]}))
    with pytest.raises(UserError, match="says that 'A' is right, the gold says 'B'"):
        read(path, protocol, gold)


# ---- keys of the benchmarks ------------------------------------------------------------------------------------------------


def pope_labels(folder):
    """Two splits with two questions each, under the same ids."""
    folder.mkdir()
    for split, offset in (("random", 0), ("adversarial", 10)):
        rows = [
            {"question_id": n, "image": f"i{n}.jpg", "text": f"Is there a {split} thing {n + offset}?", "label": "yes"}
            for n in (1, 2)
        ]
        (folder / f"coco_pope_{split}.json").write_text(lines(*rows))
    return folder


def test_pope_is_keyed_by_split_and_id(tmp_path):
    protocol = tasks.protocol("pope@mean-f1")
    gold = tasks.gold(protocol, pope_labels(tmp_path / "labels"))
    path = tmp_path / "r.jsonl"
    path.write_text(
        lines(*({"question_id": n, "category": s, "text": f"{s}{n}"} for s in ("random", "adversarial") for n in (1, 2)))
    )
    found = read(path, protocol, gold)
    assert {row["id"]: row["reply"] for row in found.rows} == {
        f"{s}/{n}": f"{s}{n}" for s in ("random", "adversarial") for n in (1, 2)
    }


def test_pope_in_llavas_numbers(tmp_path):
    """LLaVA numbers the splits apart, so that its answer files need no category."""
    protocol = tasks.protocol("pope@mean-f1")
    gold = tasks.gold(protocol, pope_labels(tmp_path / "labels"))
    path = tmp_path / "r.jsonl"
    path.write_text(lines({"question_id": 1, "category": "adversarial", "text": "a"}, {"question_id": 10000002, "text": "b"}))
    assert pairs(read(path, protocol, gold)) == [("adversarial/1", "a"), ("random/2", "b")]
    path.write_text(lines({"question_id": 1, "text": "a"}))
    with pytest.raises(UserError, match="unknown questions: '1'"):
        read(path, protocol, gold)


def mme_gold(folder):
    """Two categories, of which mme@perception counts one."""
    folder.mkdir()
    for category in ("color", "code_reasoning"):
        text = f"0001.jpg\tIs the {category} red? Please answer yes or no.\tYes\n"
        (folder / f"{category}.txt").write_text(text + text.replace("red", "blue").replace("Yes", "No"))
    return folder


def test_mme_results_folder_samples_and_json_lines(tmp_path):
    protocol = tasks.protocol("mme@perception")
    gold = tasks.gold(protocol, mme_gold(tmp_path / "gold"))
    results = tmp_path / "results"
    results.mkdir()
    for path in sorted((tmp_path / "gold").glob("*.txt")):
        (results / path.name).write_text("".join(f"{line}\tYes, it is\n" for line in path.read_text().splitlines()))
    (results / "expected.json").write_text("{}")  # whatever else lies there
    found = read(results, protocol, gold)
    wanted = [("color/0001.jpg/Is the color red?", "Yes, it is"), ("color/0001.jpg/Is the color blue?", "Yes, it is")]
    assert pairs(found) == wanted
    assert dict(found.left_out) == {"outside mme@perception": 2}
    rows = [{"question_id": "color/0001.jpg", "question": f"Is the color {c}?", "reply": "Yes, it is"} for c in ("red", "blue")]
    path = tmp_path / "r.jsonl"
    path.write_text(lines(*rows))
    assert pairs(read(path, protocol, gold)) == wanted
    named = {"question_id": "color/0001.jpg", "category": "color", "score": 1.0}
    asked = [("red", "Yes"), ("blue", "No")]
    path.write_text(
        lines(
            *(
                sample(n, "Yes, it is", f"Is the color {c}?", target=t, mme_perception_score=named)
                for n, (c, t) in enumerate(asked)
            )
        )
    )
    assert pairs(read(path, protocol, gold)) == wanted


def test_mme_result_lines_that_break(tmp_path):
    protocol = tasks.protocol("mme@perception")
    gold = tasks.gold(protocol, mme_gold(tmp_path / "gold"))
    path = tmp_path / "color.txt"
    first = "0001.jpg\tIs the color red? Please answer yes or no.\tYes\tyes\n"
    path.write_text(first + "and so on\n0001.jpg\tx\tNo\ta\ttab\n")
    with pytest.raises(UserError, match=r"2 malformed line\(s\): line 2: 1 tab-separated field\(s\), expected 4.*line 3: 5"):
        read(path, protocol, gold)
    path.write_text(first.replace("\tYes\t", "\tNo\t"))
    with pytest.raises(UserError, match="it says that 'No' is right, the gold says 'yes'"):
        read(path, protocol, gold)


def test_mmbench_by_index(tmp_path):
    protocol = tasks.protocol("mmbench@circular")
    options = {"question": "Which?", "hint": None, "A": "one", "B": "two", "C": None, "D": None}
    (tmp_path / "gold.jsonl").write_text(lines(*({"index": i, **options, "answer": "A"} for i in (241, 1000241))))
    gold = tasks.gold(protocol, tmp_path / "gold.jsonl")
    path = tmp_path / "r.tsv"
    path.write_text("index\tprediction\n241\tA\n1000241\tB\n")
    assert pairs(read(path, protocol, gold)) == [("241", "A"), ("1000241", "B")]


def test_textvqa_as_llava_names_it(tmp_path):
    """LLaVA's answers name the image, which several questions share, and hold the prompt."""
    protocol = tasks.protocol("textvqa@ocr")
    data = [
        {"question_id": n, "image_id": "img", "question": q, "answers": ["a"] * 10} for n, q in ((1, "What is X?"), (2, "Who?"))
    ]
    (tmp_path / "gold.json").write_text(json.dumps({"data": data}))
    gold = tasks.gold(protocol, tmp_path / "gold.json")
    path = tmp_path / "r.jsonl"
    ask = "What is X?\nReference OCR token: A, B\nAnswer the question using a single word or phrase."
    path.write_text(
        lines(
            {"question_id": "img", "prompt": "who?\nAnswer", "text": "me"}, {"question_id": "img", "prompt": ask, "text": "y"}
        )
    )
    assert pairs(read(path, protocol, gold)) == [("2", "me"), ("1", "y")]


def test_embedded_protocols_are_read_by_id(tmp_path):
    protocol = tasks.protocol("pope@miniature")
    gold = tasks.gold(protocol)
    path = tmp_path / "r.jsonl"
    path.write_text(lines(*({"id": q.id, "reply": q.answer} for q in gold.questions)))
    assert [row["id"] for row in read(path, protocol, gold).rows] == [q.id for q in gold.questions]
