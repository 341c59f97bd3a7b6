"""Evaluation only: presets that train nothing, models by name, and data sets from a folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import harness
import tasks
from harness import score, selection
from harness.base import OFFLINE, UserError, read_json, write_json
from harness.config import Models, Preset, is_hub_id, load_preset, model_path
from harness.stages import data
from harness.workers import network
from tasks.aggregate import aggregate

HOME = Path(harness.__file__).parents[1]
SHIPPED = HOME / "students" / "miniature" / "base"
REAL = Path(os.environ.get("HARNESS_REAL_DATA", "/nowhere"))


def run(*arguments, cwd, **environment):
    """Run the command as a process."""
    env = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment}
    command = [sys.executable, "-m", "harness.run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


# ---- the schema ------------------------------------------------------------------------------------------------------------


def test_a_preset_need_not_train():
    preset = load_preset("official")
    assert (preset.training, preset.recipes, preset.models.names) == (None, (), ())
    assert selection.students("all", preset) == []
    smoke = load_preset("real-smoke")
    assert smoke.models.names == ("teacher", "base")
    assert set(smoke.protocols) == set(preset.protocols)


def test_official_protocols_make_up_the_papers_average():
    assert set(load_preset("official").protocols) == set(tasks.derived("average@papers").terms)
    assert all(tasks.protocol(name).official for name in load_preset("official").protocols)


FACTS = {"name": "x", "title": "t", "description": "d", "protocols": ["pope@miniature"]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"recipes": ["ce"]}, "go together"),
        ({"training": {"steps": 1}}, "go together"),
        ({"training": {"steps": 1}, "recipes": ["ce"]}, "needs models.teacher and models.base"),
        ({"models": {"external": {"teacher": "x"}}}, "stands for another row"),
        ({"models": {"external": {"ce": "x"}}}, "stands for another row"),
        ({"models": {"external": {"fkl": "x"}}}, "stands for another row"),
        ({"models": {"external": {"a/b": "x"}}}, "is made of letters"),
    ],
)
def test_what_a_preset_cannot_say(more, message):
    with pytest.raises(ValueError, match=message):
        Preset.model_validate({**FACTS, **more})


def test_models_by_name(tmp_path):
    under = Models(external={"a": "x/y", "b": "x/z"})
    (tmp_path / "mine").mkdir()
    found = selection.models([f"b={tmp_path}/mine", "c=own/er"], under)
    assert found.external == {"a": "x/y", "b": str(tmp_path / "mine"), "c": "own/er"}
    assert found.names == ("a", "b", "c")
    for text in ("mine", "=x", "mine=", ""):
        with pytest.raises(UserError, match="expected NAME=PATH_OR_ID"):
            selection.models([text], under)
    with pytest.raises(UserError, match="names 'd' twice"):
        selection.models(["d=x", "d=y"], under)
    with pytest.raises(UserError, match="stands for another row"):
        selection.models(["base=x"], under)


def test_what_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name-1.5")
    assert not is_hub_id("name")
    assert not is_hub_id("./owner/name")
    assert not is_hub_id("package:students/miniature/base")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")  # a folder of that name wins
    with pytest.raises(UserError, match="'own/er' is neither a folder nor a Hugging Face model on this machine"):
        model_path("own/er")


def test_models_of_earlier_commands_stay_in_the_report(tmp_path, capsys):
    write_json(tmp_path / "manifest.json", {"models": {"base": "x", "old": str(SHIPPED), "gone": str(tmp_path / "gone")}})
    found = selection.with_earlier(tmp_path, Models(external={"new": "n"}), Console())
    assert found.external == {"new": "n", "old": str(SHIPPED)}
    assert "model gone of an earlier command leaves the report" in " ".join(capsys.readouterr().out.split())


def test_a_worker_reaches_the_hub_only_where_it_may(monkeypatch):
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    network(online=True)
    assert "HF_HUB_OFFLINE" not in os.environ
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    network(online=False)
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_signature_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "docs.jsonl").write_text("one")
    (tmp_path / "a" / "1.jpg").write_bytes(b"123")

    def signature():
        data.signature.cache_clear()
        return data.signature(tmp_path / "a")

    first = signature()
    os.utime(tmp_path / "a" / "docs.jsonl", (1, 1))
    assert signature() == first  # a copy of the data is the same data
    (tmp_path / "a" / "docs.jsonl").write_text("two")
    assert signature() != first
    with pytest.raises(UserError, match="does not exist: --data-root holds a folder per benchmark"):
        data.signature(tmp_path / "b")


# ---- what a model cannot read ----------------------------------------------------------------------------------------------


def test_unknown_words_are_counted():
    from transformers import AutoTokenizer

    from harness.stages.evaluate import unknown_words

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True)
    found = unknown_words(tokenizer, ["Is there a truck in the image?", "Is there a circle?"])
    known = tokenizer.tokenize("truck circle")
    assert known[0] == "<unk>"
    assert found == {"prompts": 2, "prompts_affected": 1, "tokens": 13, "tokens_unknown": 1}


def test_images_are_squeezed_only_where_the_processor_does_not_resize():
    from harness.stages.evaluate import squeeze
    from tasks.lmms import CheckpointModel

    model = CheckpointModel(SHIPPED)
    pictures = model.processor.image_processor
    own = [np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)]
    before = pictures(images=own, return_tensors="np")["pixel_values"]
    assert squeeze(model) == 60
    assert np.array_equal(pictures(images=own, return_tensors="np")["pixel_values"], before)
    wide = [np.zeros((30, 200, 3), dtype=np.uint8)]
    assert pictures(images=wide, return_tensors="np")["pixel_values"].shape == (1, 3, 60, 60)
    assert squeeze(model) is None  # it resizes by now


# ---- the command -----------------------------------------------------------------------------------------------------------

BAD = {
    ("--preset", "official"): "evaluates given models: name one with --model",
    ("--preset", "official", "--students", "ce", "--model", "m=x"): "trains nothing",
    ("--preset", "official", "--model", "m"): "expected NAME=PATH_OR_ID",
    ("--preset", "official", "--model", f"m={SHIPPED}", "--data-root", "nowhere", "--tasks", "pope"): "does not exist",
    ("--preset", "official", "--model", "m=nowhere", "--data-root", ".", "--tasks", "pope"): "it has no config.json",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert BAD[arguments] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def pope_root(tmp_path_factory):
    """A data root with two images and four questions in POPE's own files."""
    root = tmp_path_factory.mktemp("root")
    coco = root / "pope" / "coco"
    coco.mkdir(parents=True)
    for n in (1, 2):
        colour = (250 * (n - 1), 20, 30)
        Image.new("RGB", (90 + n, 70), colour).save(root / "pope" / f"COCO_val2014_{n}.jpg")
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": f"COCO_val2014_{n}.jpg", "text": f"Is there a {split} dog in the image?", "label": word}
            for n, word in ((1, "yes"), (2, "no"))
        ]
        (coco / f"coco_pope_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_given_models_from_a_data_root(tmp_path, pope_root):
    """Two commands, one folder: the second adds a model and repeats nothing; the report says what the numbers are."""
    given = ["--preset", "real-smoke", "--tasks", "pope", "--data-root", pope_root, "--out", "here"]
    first = run(*given, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "PARTIAL: pope@mean-f1 was asked 6 of its 8,910 questions" in first.stdout
    second = run(*given, "--model", f"mine={SHIPPED}", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "evaluate mine" in second.stdout
    third = run(*given, cwd=tmp_path)
    assert "nothing to do" in third.stdout
    scores = pd.read_parquet(tmp_path / "here" / "scores.parquet")
    assert set(zip(scores["student"], scores["kind"], strict=True)) == {("teacher",) * 2, ("base",) * 2, ("mine", "external")}
    assert scores["seed"].isna().all()
    assert len(scores) == 3 * 6
    mine, base = (scores[scores["student"] == name]["prediction"].tolist() for name in ("mine", "base"))
    assert mine == base  # the same checkpoint by another name
    report = (tmp_path / "here" / "report" / "report.md").read_text()
    assert "PARTIAL: pope@mean-f1 was asked 6 of its 8,910 questions" in report
    assert "`mine` cannot read" in report
    assert "No number here is comparable with a published one" in report
    assert re.search(r"random guessing +\| +– \| +– \|", report)  # a level for all questions is none for six
    manifest = read_json(tmp_path / "here" / "manifest.json")
    assert manifest["models"]["mine"] == str(SHIPPED)
    assert set(manifest["weights"]) == {"teacher", "base", "mine"}
    assert not (tmp_path / "here" / "diagnostics.parquet").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "mme").is_dir(), reason="HARNESS_REAL_DATA does not name the folder with real data")
def test_real_smoke(tmp_path):
    """The shipped teacher and base on every real question with an image that is there."""
    done = run("--preset", "real-smoke", "--data-root", REAL, "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = pd.read_parquet(tmp_path / "here" / "scores.parquet")
    counts = scores.groupby(["protocol", "student"]).size().to_dict()
    wanted = {"gqa@llava": 222, "scienceqa@img": 25, "textvqa@ocr": 3, "pope@mean-f1": 18, "mme@perception": 120}
    wanted["mmbench@circular"] = 10
    assert counts == {(protocol, student): n for protocol, n in wanted.items() for student in ("teacher", "base")}
    for protocol in wanted:
        replies = tmp_path / "here" / "replies" / "base" / "seed0" / f"{protocol}.jsonl"
        given = ["--protocol", protocol, "--replies", replies, "--data-root", REAL, "--partial", "--json"]
        found = CliRunner().invoke(score.app, [str(a) for a in given], catch_exceptions=False)
        rows = scores[(scores["student"] == "base") & (scores["protocol"] == protocol)]
        value = aggregate(rows, tasks.protocol(protocol).aggregation)
        assert json.loads(found.output)["value"] == pytest.approx(value)  # a run's replies score again as the run did
