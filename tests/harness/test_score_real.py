"""Every case of the real data, by the command line: published predictions score what was published, to the printed digits."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.base import UserError
from harness.score import app

ROOT = Path(os.environ.get("HARNESS_REAL_DATA", "/nowhere"))
pytestmark = pytest.mark.skipif(
    not (ROOT / "mme").is_dir(), reason="HARNESS_REAL_DATA does not name the folder with real annotations and predictions"
)


def call(protocol, replies, gold, *more, text=False):
    """Run the command; return what it prints, parsed unless ``text``."""
    given = ["--protocol", protocol, "--replies", str(ROOT / replies), "--gold", str(ROOT / gold), *more]
    done = CliRunner().invoke(app, given if text else [*given, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output if text else json.loads(done.output)


def expected(case):
    """The case's published numbers."""
    return json.loads((ROOT / case / "expected.json").read_text())


SCIENCEQA = "scienceqa/common/llava_test_CQM-A.json"
OLD_LABELS = "pope/common/labels_e3e39262_2910_3000_3000"
POPE = "pope/cases/llava15_7b_partial"
MME_GOLD = "mme/common/gold_Your_Results"


def test_scienceqa_gpt3():
    wanted = expected("scienceqa/cases/gpt3_all")
    replies = "scienceqa/cases/gpt3_all/predictions.jsonl"
    found = call("scienceqa@all", replies, SCIENCEQA)
    assert found["value"] == pytest.approx(wanted["value"], abs=1e-9)
    assert (found["n"], found["partial"]) == (wanted["n"], False)
    img = call("scienceqa@img", replies, SCIENCEQA)
    assert img["value"] == pytest.approx(wanted["value_img_subset"], abs=1e-9)
    assert img["n"] == wanted["n_img"]
    text = call("scienceqa@img", replies, SCIENCEQA, text=True)
    assert "scienceqa@img: 67.43 %" in text
    assert "2,224 replies" in text  # to text-only questions


@pytest.mark.parametrize("protocol", ["scienceqa@img", "scienceqa@lmms"])
def test_scienceqa_paligemma(protocol):
    wanted = expected("scienceqa/cases/paligemma2_img")
    found = call(protocol, "scienceqa/cases/paligemma2_img/production_eval_results.json", SCIENCEQA)
    assert found["value"] == pytest.approx(100 * wanted["published"], abs=1e-9)
    assert found["n"] == wanted["n"]
    assert found["groups"] == {name: pytest.approx(100 * part["accuracy"]) for name, part in wanted["by_subject"].items()}
    assert found["unparseable"] > 0


@pytest.mark.parametrize("protocol", ["gqa@llava", "gqa@lmms"])
def test_gqa_head_subset(protocol):
    wanted = expected("gqa/cases/llava15_13b_oodhead")
    case = "gqa/cases/llava15_13b_oodhead"
    found = call(protocol, f"{case}/predictions.jsonl", f"{case}/ood_testdev_head.json", "--partial")
    assert found["value"] == pytest.approx(100 * wanted["value"], abs=1e-9)
    assert (found["n"], found["partial"]) == (wanted["n"], True)


def test_a_subset_without_partial_is_refused():
    case = "gqa/cases/llava15_13b_oodhead"
    with pytest.raises(UserError, match="1733 rows that count, the protocol 12578"):
        call("gqa@llava", f"{case}/predictions.jsonl", f"{case}/ood_testdev_head.json")


@pytest.mark.parametrize("protocol", ["textvqa@ocr", "textvqa@no-ocr", "textvqa@lmms"])
def test_textvqa_m4c(protocol, tmp_path):
    wanted = expected("textvqa/cases/m4c")
    replies, gold = "textvqa/cases/m4c/predictions.jsonl", "textvqa/common/TextVQA_0.5.1_val.json"
    out = tmp_path / "rows.jsonl"
    found = call(protocol, replies, gold, "--out", str(out))
    assert found["value"] == pytest.approx(100 * wanted["published_mean"], abs=1e-9)
    assert found["n"] == wanted["n"]
    published = {
        str(row["question_id"]): row["published_accuracy"] for row in map(json.loads, (ROOT / replies).read_text().splitlines())
    }
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["id"]: row["score"] for row in rows} == {name: pytest.approx(value) for name, value in published.items()}


def test_pope_llava_partial():
    wanted = expected(POPE)
    replies = f"{POPE}/predictions.jsonl"
    found = call("pope@mean-f1", replies, OLD_LABELS, "--partial")
    assert found["value"] == pytest.approx(100 * wanted["metrics"]["mean_f1_of_subsets"], abs=1e-9)
    assert found["groups"] == {
        split: pytest.approx(100 * wanted["metrics"][split]["f1"]) for split in ("adversarial", "random")
    }
    assert found["n"] == wanted["metrics"]["pooled"]["n"]
    for protocol in ("pope@lmms", "pope@accuracy"):
        pooled = call(protocol, replies, OLD_LABELS, "--partial")
        assert pooled["value"] == pytest.approx(100 * wanted["lmms_eval_pooled"]["pope_accuracy"], abs=1e-9)
    text = call("pope@mean-f1", replies, OLD_LABELS, "--partial", text=True)
    for split in ("adversarial", "random", "pooled"):
        name = "all" if split == "pooled" else split
        line = next(
            line for line in text.splitlines() if line.removeprefix("PARTIAL ").split()[0] == name and "n =" not in line
        )
        parts = [wanted["metrics"][split][key] for key in ("acc", "prec", "rec", "f1", "yes")]
        assert line.split()[2:] == [f"{100 * value:.2f}" for value in parts]


def test_pope_of_another_release_is_refused():
    """The ids are there, but 144 of the questions are others."""
    with pytest.raises(UserError, match="about other questions than the gold's"):
        call("pope@mean-f1", f"{POPE}/predictions.jsonl", "pope/common/labels_main_3000x3", "--partial")


def test_pope_qwen_by_either_rule():
    wanted = expected("pope/cases/qwen_small150")
    records = "pope/cases/qwen_small150/records.jsonl"
    found = call("pope@accuracy", records, records, "--partial")
    assert found["groups"] == {name: pytest.approx(100 * value) for name, value in wanted["published_summary_csv"].items()}
    strict = call("pope@lmms", records, records, "--partial")
    assert strict["groups"] == {
        name: pytest.approx(100 * value) for name, value in wanted["value_strict_lmms_eval_rule"].items()
    }
    assert strict["unparseable"] == 5


def test_mmbench_vanilla_records():
    wanted = expected("mmbench/cases/qwen_vanilla1000")
    records = "mmbench/cases/qwen_vanilla1000/records.jsonl"
    found = call("mmbench@vanilla", records, records, "--partial")
    assert found["value"] == pytest.approx(100 * wanted["overall"])
    assert found["groups"] == {name: pytest.approx(100 * value) for name, value in wanted["published_summary_csv"].items()}


def test_mme_lavin():
    wanted = expected("mme/cases/LaVIN")
    perception = call("mme@perception", "mme/cases/LaVIN", MME_GOLD)
    cognition = call("mme@cognition", "mme/cases/LaVIN", MME_GOLD)
    assert perception["value"] == pytest.approx(wanted["perception"], abs=1e-9)
    assert cognition["value"] == pytest.approx(wanted["cognition"], abs=1e-9)
    assert {**perception["groups"], **cognition["groups"]} == {
        name: pytest.approx(value) for name, value in wanted["per_category"].items()
    }
    assert perception["n"] + cognition["n"] == wanted["n"]
    published = wanted["published_leaderboard"]
    text = call("mme@perception", "mme/cases/LaVIN", MME_GOLD, "--protocol", "mme@cognition", text=True)
    assert f"mme@cognition: {published['cognition']} points" in text
    assert f"mme@perception: {float(published['perception']):.1f}" in text
    for name in wanted["per_category"]:
        assert any(line.split()[:2] == [name, published[name]] for line in text.splitlines())


@pytest.mark.parametrize("protocol", ["mme@cognition", "mme@lmms"])
def test_mme_lmms_eval_log(protocol):
    wanted = expected("mme/cases/lmmseval_limit8_log")
    found = call(protocol, "mme/cases/lmmseval_limit8_log/20260923_231748_samples_mme.trimmed.jsonl", MME_GOLD, "--partial")
    assert found["value"] == pytest.approx(wanted["value"])
    assert found["n"] == wanted["n"]
