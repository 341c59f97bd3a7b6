"""Published predictions score what was published, to the printed digits: the protocols, not the cases, decide how."""

from __future__ import annotations

from functools import lru_cache

import pytest
from real import GOLD, ROOT, lines, needs_data, value

import tasks
from harness.base import UserError
from tasks.answers.shapes import mme_key

pytestmark = needs_data


@lru_cache
def gold(name, path):
    return tasks.gold(tasks.protocol(name), ROOT / path)


def score(name, path, rows, partial=False):
    """Score (key, reply) rows under a protocol."""
    found = gold(name, path)
    replies = [{"id": found.keys[key], "reply": reply, **more} for key, reply, more in rows]
    return tasks.score(name, replies, found, partial=partial)


def of(rows, keys, reply="prediction"):
    return [(tuple(str(row[key]) for key in keys), row[reply], {}) for row in rows]


# ---- ScienceQA ----------------


def test_scienceqa_gpt3():
    rows = of(lines("scienceqa/cases/gpt3_all/predictions.jsonl"), ["pid"])
    expected = value("scienceqa/cases/gpt3_all/expected.json")
    every = score("scienceqa@all", GOLD["scienceqa"], rows)
    assert every.value == pytest.approx(expected["published_in_file"], abs=1e-9)
    assert (len(every.rows), every.rows["score"].sum()) == (4241, expected["correct"])
    shown = score("scienceqa@img", GOLD["scienceqa"], rows)
    assert shown.value == pytest.approx(expected["value_img_subset"], abs=1e-9)
    assert (len(shown.rows), shown.left_out) == (2017, 2224)


@pytest.mark.parametrize("name", ["scienceqa@img", "scienceqa@lmms"])
def test_scienceqa_paligemma(name):
    case = value("scienceqa/cases/paligemma2_img/production_eval_results.json")
    order = gold(name, GOLD["scienceqa"]).order
    rows = [((order[row["index"]],), row["prediction"], {"group": row["subject"]}) for row in case["samples"]]
    scores = score(name, GOLD["scienceqa"], rows)
    assert scores.value == pytest.approx(100 * case["accuracy"], abs=1e-9)
    assert scores.groups == pytest.approx({k: 100 * v["accuracy"] for k, v in case["by_subject"].items()})
    unread = scores.rows[scores.rows["unparseable"]]
    assert {case["samples"][order.index(name)]["prediction"] for name in unread["id"]} >= {"", "AA"}


# ---- GQA, TextVQA ----------------


@pytest.mark.parametrize("name", ["gqa@llava", "gqa@lmms"])
def test_gqa_llava13b(name):
    rows = of(lines("gqa/cases/llava15_13b_oodhead/predictions.jsonl"), ["question_id"])
    scores = score(name, GOLD["gqa"], rows, partial=True)
    assert scores.value == pytest.approx(100 * value("gqa/cases/llava15_13b_oodhead/expected.json")["value"], abs=1e-9)
    assert scores.rows["score"].sum() == 1070
    with pytest.raises(UserError, match="holds 1733 rows that count, the protocol 12578"):
        score(name, GOLD["gqa"], rows)


@pytest.mark.parametrize("name", ["textvqa@ocr", "textvqa@no-ocr", "textvqa@lmms"])
def test_textvqa_m4c_question_by_question(name):
    case = lines("textvqa/cases/m4c/predictions.jsonl")
    scores = score(name, GOLD["textvqa"], of(case, ["question_id"]))
    published = {str(row["question_id"]): row["published_accuracy"] for row in case}
    assert scores.rows.set_index("id")["score"].to_dict() == pytest.approx(published, abs=1e-9)
    assert scores.value == pytest.approx(100 * value("textvqa/cases/m4c/expected.json")["published_mean"], abs=1e-9)


# ---- POPE ----------------


def test_pope_llava7b_every_published_measure():
    rows = of(lines("pope/cases/llava15_7b_partial/predictions.jsonl"), ["category", "question_id"])
    expected = value("pope/cases/llava15_7b_partial/expected.json")
    scores = score("pope@mean-f1", GOLD["pope"], rows, partial=True)
    assert scores.value == pytest.approx(100 * expected["metrics"]["mean_f1_of_subsets"], abs=1e-9)
    names = {"accuracy": "acc", "precision": "prec", "recall": "rec", "f1": "f1", "yes": "yes"}
    for group, theirs in (("random", "random"), ("adversarial", "adversarial"), ("all", "pooled")):
        want = {ours: 100 * expected["metrics"][theirs][key] for ours, key in names.items()}
        assert scores.measures[group] == pytest.approx(want, abs=1e-9)
    assert scores.partial
    assert scores.notes == ("3198 of 8910 questions have no reply",)
    assert scores.groups == pytest.approx({g: scores.measures[g]["f1"] for g in ("random", "adversarial")})
    pooled = score("pope@lmms", GOLD["pope"], rows, partial=True)
    assert pooled.value == pytest.approx(100 * expected["lmms_eval_pooled"]["pope_accuracy"], abs=1e-9)
    assert pooled.measures["all"]["f1"] == pytest.approx(100 * expected["lmms_eval_pooled"]["pope_f1_score"], abs=1e-9)


def test_pope_qwen_read_as_llava_reads_and_strictly():
    path = "pope/cases/qwen_small150/records.jsonl"
    expected = value("pope/cases/qwen_small150/expected.json")
    for name, key in (("pope@accuracy", "published_summary_csv"), ("pope@lmms", "value_strict_lmms_eval_rule")):
        order = gold(name, path).order
        replies = [{"id": order[n], "reply": row["prediction"]} for n, row in enumerate(lines(path))]
        scores = tasks.score(name, replies, gold(name, path), partial=True)
        assert scores.groups == pytest.approx({k: 100 * v for k, v in expected[key].items()})
    assert scores.rows["unparseable"].sum() == 5, "the five replies 'Yes.' are no answer to lmms-eval"


# ---- MMBench ----------------


def test_mmbench_qwen_all_categories():
    path = "mmbench/cases/qwen_vanilla1000/records.jsonl"
    expected = value("mmbench/cases/qwen_vanilla1000/expected.json")
    replies = [{"id": str(n), "reply": row["prediction"]} for n, row in enumerate(lines(path))]
    scores = tasks.score("mmbench@vanilla", replies, gold("mmbench@vanilla", path), partial=True)
    assert scores.value == pytest.approx(100 * expected["overall"])
    assert scores.groups == pytest.approx({k: 100 * v for k, v in expected["published_summary_csv"].items()})


def test_mmbench_circular_is_below_vanilla_on_the_same_replies():
    """A model that is right on the questions as published, and says A on their rotations."""
    path, name = GOLD["mmbench"], "mmbench@circular-20230712"
    found = gold(name, path)
    replies = [{"id": q.id, "reply": q.answer if int(q.id) < 1_000_000 else "A"} for q in found.questions]
    circular = tasks.score(name, replies, found)
    vanilla = tasks.score("mmbench@vanilla-20230712", replies, gold("mmbench@vanilla-20230712", path))
    assert (vanilla.value, vanilla.left_out, len(vanilla.rows)) == (100.0, 3201, 1176)
    wrong = {q.cluster for q in found.questions if int(q.id) >= 1_000_000 and q.answer != "A"}
    assert circular.value == pytest.approx(100 * (1 - len(wrong) / 1176))
    assert circular.value < 5


# ---- MME ----------------


def lavin():
    rows = []
    for path in sorted((ROOT / "mme/cases/LaVIN").glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            image, question, _, reply = line.split("\t")
            rows.append((mme_key(f"{path.stem}/{image}", question), reply, {}))
    return rows


def test_mme_lavin_both_sums_and_all_categories():
    expected = value("mme/cases/LaVIN/expected.json")
    perception = score("mme@perception", GOLD["mme"], lavin())
    cognition = score("mme@cognition", GOLD["mme"], lavin())
    assert perception.value == pytest.approx(expected["perception"], abs=1e-9)
    assert cognition.value == pytest.approx(expected["cognition"], abs=1e-9)
    assert {**perception.groups, **cognition.groups} == pytest.approx(expected["per_category"], abs=1e-9)
    assert (perception.left_out, cognition.left_out) == (260, 2114)
    both = score("mme@lmms", GOLD["mme"], lavin())
    assert both.value == pytest.approx(perception.value + cognition.value)


@pytest.mark.parametrize("name", ["mme@cognition", "mme@lmms"])
def test_mme_lmms_log(name):
    case = lines("mme/cases/lmmseval_limit8_log/20260923_231748_samples_mme.trimmed.jsonl")
    rows = [(mme_key(row["input_media"][0], row["input"]), row["filtered_resps"], {}) for row in case]
    scores = score(name, GOLD["mme"], rows, partial=True)
    assert scores.value == pytest.approx(value("mme/cases/lmmseval_limit8_log/expected.json")["value"])
    by_row = dict(zip(scores.rows["id"], scores.rows["score"], strict=True))
    found = gold(name, GOLD["mme"])
    assert [by_row[found.keys[key]] for key, _, _ in rows] == [row["mme_cognition_score"]["score"] for row in case]


def test_half_a_pair_is_left_out_and_said():
    rows = lavin()
    one = [row for row in rows if row[0][0] != rows[0][0][0]] + rows[:1]
    scores = score("mme@perception", GOLD["mme"], one, partial=True)
    assert len(scores.rows) == 2112
    assert scores.notes == ("1 of 2114 questions have no reply", "1 pairs are half answered and left out")


# ---- what is refused ----------------


def test_the_error_on_another_release_names_its_protocol():
    found = gold("mmbench@circular", GOLD["mmbench"])
    replies = [{"id": q.id, "reply": "A"} for q in found.questions]
    with pytest.raises(UserError, match=r"4377 rows that count, the protocol 4329; mmbench@circular-20230712 expect"):
        tasks.score("mmbench@circular", replies, found)
    newer = gold("pope@mean-f1", "pope/common/labels_main_3000x3")
    with pytest.raises(UserError, match=r"9000 rows that count, the protocol 8910; .*pope@mean-f1-3000"):
        tasks.score("pope@mean-f1", [{"id": q.id, "reply": "yes"} for q in newer.questions], newer)


def test_missing_double_and_unknown_ids_are_named():
    rows = of(lines("scienceqa/cases/gpt3_all/predictions.jsonl"), ["pid"])
    found = gold("scienceqa@img", GOLD["scienceqa"])
    replies = [{"id": found.keys[key], "reply": reply} for key, reply, _ in rows]
    counted = next(r for r in replies if r["id"] not in found.left_out)
    aside = next(r for r in replies if r["id"] in found.left_out)
    cases = {
        f"1 of 2017 questions have no reply, first '{counted['id']}'": [r for r in replies if r is not counted],
        f"two replies to question '{counted['id']}'": [*replies, counted],
        f"two replies to question '{aside['id']}'": [*replies, aside],
        "unknown question id '99999'": [*replies, {"id": "99999", "reply": "A"}],
    }
    for message, given in cases.items():
        with pytest.raises(UserError, match=message):
            tasks.score("scienceqa@img", given, found)
    assert tasks.score("scienceqa@img", [r for r in replies if r is not aside], found).left_out == 2223
