"""A real run in small: a two-stage preset on twins of the MobileVLM pair and LLaVA files, killed, resumed, and reported."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from no_network import block

import harness
from harness import weights as sizes
from harness.base import digest_file, read_json, read_jsonl

HOME = Path(harness.__file__).parents[1]
sys.path.insert(0, str(HOME / "tests" / "students"))

from tiny_corpus import llava_corpus  # noqa: E402
from twin_families import twin  # noqa: E402
from twins import clip_tower, mobilellama_twin, mobilevlm_twin  # noqa: E402

PRESET = """
name: twins
title: The path of a real run, on twins that know nothing
description: Nothing that these models answer means anything.
protocols: [pope@miniature, scienceqa@miniature]
models:
  teacher: {folder}/teacher
  base: {{ assemble: {{ language: {folder}/language, tower: {folder}/tower, seed: 3 }} }}
  external: {{ public: {folder}/public }}
corpora:
  captions: {{ format: llava, file: captions/corpus.json, images: captions/images, rows: 20 }}
  instructions: {{ format: llava, file: instructions/corpus.json, images: instructions/images, rows: 30 }}
stages:
  - name: captions
    corpus: captions
    training: &training
      {{ steps: 3, rows: 4, micro_rows: 2, lr: 1.0e-3, projector_lr: 1.0e-2, optimiser: adamw, warmup_ratio: 0.03,
         max_length: 512, template: plain, betas_every: 2, flush_every: 1, save_every: 2 }}
  - name: instructions
    corpus: instructions
    training:
      {{ <<: *training, steps: 30, projector_lr: null, template: v1, grouping: modality_length, gradient_checkpointing: true }}
evaluation: {{ batch_size: 8, diagnostics: false, pictures: 2, limit: 2 }}
recipes: [ce, ce+fd+fkl@instance]
workers: 1
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models and data below one folder."""
    folder = tmp_path_factory.mktemp("world")
    mobilellama_twin(folder / "language")
    clip_tower(folder / "tower")
    mobilevlm_twin(folder / "teacher", "teacher", seed=1)
    mobilevlm_twin(folder / "public", "student", seed=2)
    twin("qwen2_5_vl", folder / "other", "student")
    captions(llava_corpus(folder / "data" / "captions", rows=20, text_only=0.0).json)
    llava_corpus(folder / "data" / "instructions", rows=30, seed=1)
    return folder


def captions(path):
    """Cut rows to one turn, which is all that the format plain has."""
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "conversations": row["conversations"][:2]} for row in rows]))


def preset(world, name):
    path = world / f"{name}.yaml"
    path.write_text(PRESET.format(folder=world))
    return path


def command(world, path, out, *more):
    given = ["--preset", path, "--data-root", world / "data", "--out", out, "--offline", *more]
    return [sys.executable, "-m", "harness.run", *map(str, given)]


def environment(world):
    """No process of a run may look at the network: --offline means that."""
    path = f"{block(world / 'blocked')}{os.pathsep}{HOME}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HOME": str(world / "hub")}


def run(world, path, out, *more):
    done = subprocess.run(
        command(world, path, out, *more), capture_output=True, text=True, cwd=world, env=environment(world), check=False
    )
    assert done.returncode == 0, done.stderr + "".join(p.read_text() for p in (world / out).glob("logs/*"))
    return done.stdout


@pytest.fixture(scope="module")
def whole(world):
    """The run that nobody disturbed, and what it printed."""
    return world / "whole", run(world, preset(world, "twins"), "whole", "--model", f"other={world / 'other'}")


def test_the_plan_says_what_will_happen(world):
    path = preset(world, "planned")
    out = run(world, path, "nowhere", "--dry-run")
    assert "assembled from:" in out
    for words in (
        "corpus captions",
        "model base",
        "student ce seed0 captions",
        "evaluate public pope@miniature",
        "nothing is missing",
    ):
        assert words in out
    assert not (world / "nowhere").exists()
    teacher = next(line for line in out.splitlines() if line.strip().startswith("teacher"))
    assert "its file sizes" in teacher, "a .bin file is not opened"


def test_both_stages_of_both_students_are_there(whole):
    root, _ = whole
    for recipe in ("ce", "ce+fd+fkl@instance"):
        for folder, steps in (
            (root / "earlier" / recipe / "seed0" / "captions", 3),
            (root / "students" / recipe / "seed0", 30),
        ):
            assert (folder / "student" / "config.json").is_file()
            assert [row["step"] for row in read_jsonl(folder / "dynamics.jsonl")] == list(range(1, steps + 1))
    base, student = (sizes.read(root / folder) for folder in ("models/base", "students/ce/seed0/student"))
    assert student.size == pytest.approx(4 * base.parameters, rel=0.1), "what harness/estimates.py counts on: all in float32"
    assert not list(root.rglob("*.partial")), "nothing half-made is left"
    assert not list((root / "students").rglob("resume")), "resume points are gone with what they were for"


def test_the_teacher_is_asked_once(whole):
    """Of each corpus, through its own format; no student runs it."""
    root, out = whole
    said = read_json(root / "manifest.json")["signal"]
    assert [line.partition(":")[0] for line in said] == ["teacher signal captions", "teacher signal instructions"]
    assert all("exact, float32" in line and line in out for line in said)
    for folder, rows in ((root / "earlier", 20), (root / "students", 30)):
        (path,) = folder.glob("ce+fd+fkl@instance/seed0/**/cost.json")
        cost = read_json(path)
        assert (cost["teacher_passes_own"], cost["teacher_passes_shared"]) == (0, rows)


def test_rows_are_tokenised_once_for_both_stages_and_both_students(whole):
    """The second stage starts from what the first one saved, which reads as the base does; features stand for pictures."""
    root, out = whole
    for name, rows in (("captions", 20), ("instructions", 30)):
        line = f"tokens of corpus {name}: made once, because"
        assert any(said.startswith(line) for said in read_json(root / "manifest.json")["rows"])
        for recipe in ("ce", "ce+fd+fkl@instance"):
            folder = root / ("earlier" if name == "captions" else "students") / recipe / "seed0"
            facts = read_json((folder / name if name == "captions" else folder) / "training.json")
            assert facts["tokens"] == {"student": f"tokens of {rows} rows, made once"}
    assert "encode captions" in out


def weights(folder):
    from students.checkpoint import digest_weights

    return digest_weights(folder)


def test_the_second_stage_starts_where_the_first_ended(whole):
    """Its tower is the assembled one to the bit, its language model is neither the base's nor the first stage's."""
    from safetensors.torch import load_file

    root, _ = whole

    def tensors(folder):
        return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}

    base, first = tensors(root / "models" / "base"), tensors(root / "earlier" / "ce" / "seed0" / "captions" / "student")
    last = tensors(root / "students" / "ce" / "seed0" / "student")
    assert set(base) == set(first) == set(last)
    for name in base:
        frozen = "vision_tower" in name
        assert np.array_equal(base[name].numpy(), last[name].numpy()) == frozen, name
    moved = [name for name in base if "vision_tower" not in name]
    near = sum(float((first[name] - last[name]).abs().sum()) for name in moved)
    far = sum(float((base[name] - last[name]).abs().sum()) for name in moved)
    assert near < far, "it goes on from the first stage and not from the base"


def test_rows_of_all_kinds_are_scored_and_reported(whole):
    root, out = whole
    scores = pd.read_parquet(root / "scores.parquet")
    kinds = dict(zip(scores["student"], scores["kind"], strict=True))
    assert kinds == {
        "teacher": "teacher", "public": "external", "other": "external", "ce": "student", "ce+fd+fkl@instance": "student",
    }  # fmt: skip
    assert set(scores["protocol"]) == {"pope@miniature", "scienceqa@miniature"}
    report = (root / "report" / "report.md").read_text()
    for name in kinds:
        assert f"`{name}`" in report
    assert "ce+fd+fkl@instance" in out
    manifest = read_json(root / "manifest.json")
    assert set(manifest["models"]) == {"teacher", "base/language", "base/tower", "public", "other"}
    assert {"base", "base/language"} <= set(manifest["weights"])


def test_the_same_command_again_does_nothing(world, whole):
    out = run(world, world / "twins.yaml", "whole", "--model", f"other={world / 'other'}")
    assert "nothing to do" in out


def test_the_rows_that_a_student_learned_are_counted(whole):
    root, _ = whole
    facts = read_json(root / "corpora" / "captions" / "corpus.json")
    assert (facts["rows"], facts["rows_with_image"]) == (20, 20)


@pytest.mark.slow
def test_killed_in_the_second_stage_and_resumed(world, whole):
    """A run that is killed in the middle of stage two ends with the weights, records and scores of one that is not."""
    recipe = "ce+fd+fkl@instance"
    path, only = preset(world, "killed"), ("--students", recipe, "--tasks", "pope")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(world, path, "killed", *only), cwd=world, env=environment(world), **quiet)
    done = world / "killed" / "students" / recipe / "seed0"
    resume = done.with_name("seed0.partial") / "resume"
    deadline = time.monotonic() + 300
    while not (resume.is_dir() and any(resume.rglob("*"))) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert resume.is_dir(), "it was killed after its first resume point"
    assert not done.exists(), "and before its end"
    out = run(world, path, "killed", *only)
    assert f"student {recipe} seed0" in out
    assert "seed0 captions" not in out, "the first stage is not done again"
    theirs = whole[0] / "students" / recipe / "seed0"
    assert weights(done / "student") == weights(theirs / "student")
    first, second = ([{**row, "seconds": 0} for row in read_jsonl(folder / "dynamics.jsonl")] for folder in (done, theirs))
    assert first == second
    assert digest_file(done / "betas.parquet") == digest_file(theirs / "betas.parquet")
    ours, others = (pd.read_parquet(root / "scores.parquet") for root in (world / "killed", whole[0]))
    others = others[(others["student"] == recipe) & (others["protocol"] == "pope@miniature")]
    pd.testing.assert_frame_equal(ours[ours["student"] == recipe].reset_index(drop=True), others.reset_index(drop=True))


@pytest.mark.slow
def test_unreadable_images_stop_a_run_unless_they_are_allowed(world):
    folder = world / "data" / "captions" / "images"
    broken = sorted(folder.rglob("*.jpg"))[0]
    kept = broken.read_bytes()
    path = preset(world, "broken")
    only = ("--students", "ce", "--tasks", "pope", "--limit", "1")
    broken.write_bytes(kept[:40])
    try:
        done = subprocess.run(
            command(world, path, "broken", *only),
            capture_output=True,
            text=True,
            cwd=world,
            env=environment(world),
            check=False,
        )
        assert done.returncode == 2
        assert broken.name in done.stderr and "--skip-unreadable" in done.stderr
        said = run(world, path, "broken", *only, "--skip-unreadable", "1")
        facts = read_json(world / "broken" / "corpora" / "captions" / "corpus.json")
        assert len(facts["unreadable"]) == 1
        assert facts["rows"] < 20
        manifest = read_json(world / "broken" / "manifest.json")
        assert manifest["overrides"]["skip_unreadable"] == 1
        lost = f"corpus captions lacks {20 - facts['rows']} of its source's 20 rows"
        assert [line[: len(lost)] for line in manifest["left_out"]] == [lost]
        assert f"LEFT OUT: {lost}" in said
    finally:
        broken.write_bytes(kept)


def test_hours_come_from_the_real_code(world, tmp_path):
    """The probe on a CPU, where a plan would not run it: made-up rows through the same training."""
    from harness import probe
    from students.options import DistilOptions
    from students.recipe import parse

    options = DistilOptions(
        epochs=1, rows=16, micro_rows=4, optimiser="adamw", max_length=512, template="v1", warmup_ratio=0.03, save_every=5
    )
    timing = probe.probe(parse("ce+fkl@instance"), None, options, world / "public", world / "teacher", 20.0, "cpu", tmp_path)
    assert timing.seconds > 0
    assert not list(tmp_path.iterdir()), "nothing is left of it"
    assert probe.hours(timing, options, 100) == pytest.approx(100 * 4 * timing.seconds / 3600)
    json.dumps({"seconds": timing.seconds})
    with tempfile.TemporaryDirectory() as name:
        a_row = probe.signal(options, world / "teacher", 20.0, "cpu", Path(name) / "signal")
        assert a_row > 0
        # a folder that is no teacher: whoever hears a signal loads none, and what was said belongs to who said it
        given = (parse("ce+fkl@instance"), None, options, world / "public", world / "teacher", 20.0, "cpu", tmp_path)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("students.taps.frozen", lambda *_: pytest.fail("a teacher was loaded"))
            assert probe.probe(*given, Path(name) / "signal").seconds > 0
