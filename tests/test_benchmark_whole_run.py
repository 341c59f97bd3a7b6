"""benchmarks/whole_run.py: its plain side computes the same losses and weights, and both sides agree. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import plain_run
from harness import base
from harness.config import load_preset, load_recipe, model_path
from students import energies, weightings
from students.batch import TokenBatch
from students.data import pack
from students.data.samples import Sample, TrainingSet

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", plain_run.ENERGIES)
def test_an_energy_is_the_projects(name):
    torch.manual_seed(0)
    teacher, student = 3 * torch.randn(2, 5, 7), 3 * torch.randn(2, 5, 7)
    made = energies.build(name)(
        TokenBatch(student.flatten(0, 1), teacher.flatten(0, 1), torch.zeros(10).long(), torch.arange(10))
    )
    torch.testing.assert_close(plain_run.energy(name, teacher, student).flatten(), made, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["ce", "fkl", "ce+fkl@fixed", "ce+fkl@fixed@lambda4", "ce+fkl@task", "ce+cosine_probs@instance"]
)
def test_what_balances_the_channels_is_the_projects(text):
    recipe, constant = load_recipe(text), 4.0 if "lambda4" in text else 1.0
    losses = {channel: torch.rand(6) for channel in recipe.channels}
    state = torch.randn(6, 8)
    torch.manual_seed(3)
    mine = plain_run.Weights(recipe, 8, constant)
    torch.manual_seed(3)
    options = {"weights": constant} if "lambda4" in text else {}
    theirs = weightings.build(recipe.weighting or "fixed", recipe.channels, 8, **options)
    with torch.no_grad():
        for own in (mine, theirs):
            for parameter in own.parameters():  # away from where both start
                parameter += torch.linspace(-0.2, 0.3, parameter.numel()).view_as(parameter)
    normed = torch.nn.functional.layer_norm(state, (8,))
    torch.testing.assert_close(mine(losses, state), theirs(losses, features=normed).total, rtol=1e-6, atol=1e-6)


def some_questions():
    """Questions about two images, and two about none; prompts and replies of several lengths."""
    asked = [
        ("a", "Is it red?", "yes"), ("a", "Is there a red circle in the image?", "no"), ("b", "What is it?", "a red circle"),
        (None, "Is it blue?", "yes"), ("b", "Is it red or blue?", "red"), (None, "What is it?", "a blue circle"),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    samples = tuple(
        Sample(str(k), "toy", image, prompt, reply, reply, False, False) for k, (image, prompt, reply) in enumerate(asked)
    )
    return TrainingSet(samples, {key: rng.integers(0, 255, (60, 60, 3), dtype=np.uint8) for key in "ab"})


def test_rows_of_one_question_have_the_losses_of_packed_rows():
    preset, found = load_preset("miniature"), some_questions()
    places = {role: model_path(str(getattr(preset.models, role))) for role in ("teacher", "base")}
    model, processor = plain_run.load(places["base"])
    encoded = pack.encode(found.samples, processor)
    rows = pack.groups(encoded, turns=10)

    def images(keys):
        return torch.as_tensor(
            processor.image_processor([found.images[key] for key in keys], return_tensors="pt")["pixel_values"]
        )

    made = {}
    for name in plain_run.ROWS:
        trainer = plain_run.Trainer(preset, load_recipe("ce+fkl@instance"), found, places, name, plain_run.Clock({}))
        trainer.teacher = plain_run.load(places["teacher"])[0]
        step = getattr(plain_run, name)(encoded, rows, images)
        made[name] = (step, *trainer._losses(model, step, len(processor.tokenizer)))
    (alone, losses, states), (together, others, ends) = made["single"], made["packed"]
    assert len(alone.given["input_ids"]) == 6 and len(alone.given["pixel_values"]) == 4
    assert len(together.given["input_ids"]) == 3 and len(together.given["pixel_values"]) == 2
    assert losses["ce"].shape == (6,) and losses["fkl"].min() > 0
    torch.testing.assert_close(losses, others, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states, ends, rtol=1e-5, atol=1e-5)


def test_rows_that_nobody_knows_are_refused():
    with pytest.raises(base.UserError, match="unknown rows 'singel'"):
        plain_run.main({"rows": "singel"}, print)


@pytest.mark.parametrize(
    ("students", "message"), [("ce+tvd@task", "no plain implementation of 'ce+tvd@task'"), ("cee", "'ce'")]
)
def test_what_the_plain_side_cannot_do_is_refused_before_anything_runs(students, message, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "whole_run.py"), "--out", str(tmp_path / "o"), "--students", students]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_blind_teacher_is_refused():
    with pytest.raises(base.UserError, match="no teacher is blind to"):
        plain_run.refuse(load_recipe("ce"), load_preset("planted"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--plain-rows", "packed", "--together"]], ids=["single", "packed"])
def test_both_sides_learn_the_same_and_reply_the_same(more, tmp_path):
    arguments = [*more, "--out", "o", "--steps", "3", "--images", "30", "--limit", "2", "--students", "ce,ce+fkl@task"]
    command = [sys.executable, str(ROOT / "benchmarks" / "whole_run.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "o" / "whole_run.json").read_text())
    assert [row["student"] for row in found["losses"]] == ["ce", "ce+fkl@task"]
    assert all(row["gap_of_first_steps"] < 1e-5 and row["steps"] == 3 for row in found["losses"])
    assert {row["student"] for row in found["scores"]} == {"teacher", "base", "ce", "ce+fkl@task"}
    assert all(row["equal_replies"] == 1 and row["ours"] == row["plain"] for row in found["scores"])
    assert min(found[name] for name in ("ratio", "ratio_by_the_clock", "ratio_without_report")) > 0
    assert "Where the seconds go" in (tmp_path / "o" / "whole_run.md").read_text()
