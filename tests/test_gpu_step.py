"""benchmarks/gpu_step.py runs, tiny and on a CPU, and counts what torch counts. No time is asserted."""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gpu_step
import scaling
from harness.config import load_preset
from harness.probe import MadeUp
from real_size import Random, flops
from students.data.pack import Batch
from students.inputs import StreamInputs
from students.recipe import Variant, parse
from students.training import Training
from students.voice import CachedStreamVoice


@pytest.fixture
def work():
    found = gpu_step.workload(tiny=True, device="cpu", steps=1, rows=2, micro_rows=1)
    return replace(found, options=found.options.model_copy(update={"gradient_checkpointing": False}))


@pytest.fixture
def trained(work, tmp_path):
    """A training beside a live teacher, its adapters and rows."""
    corpus = MadeUp(work.rows, 100)
    torch.manual_seed(0)
    adapters = {name: Random(size, work.length, "cpu", torch.float32) for name, size in _sizes(work).items()}
    adapters["teacher"].model.requires_grad_(False)
    with gpu_step.made_here(adapters):
        given = StreamInputs(Path("base"), corpus, Path("teacher"))
        training = Training(parse("ce+fkl@fixed"), work.options, given, 0, tmp_path, "cpu", Variant())
        with contextlib.closing(training):
            training.recorder.begin()
            yield training, adapters, corpus


def _sizes(work):
    return {"base": work.student, "teacher": work.teacher}


def test_flops_are_those_that_torch_counts(work, trained):
    training, _, _ = trained
    members = training.feed.members(2)
    supervised = [training.feed.part([row]).batch.labels.numel() for row in members]
    with FlopCounterMode(display=False) as counter:
        training.step(2, members)
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    expected = flops(work.student, work.teacher, 2, work.length, sum(supervised) / len(supervised), attention=False)
    tower = work.student
    unread = (8 * tower.tower_hidden**2 + 4 * tower.tower_hidden * tower.tower_intermediate) * (12 * 12 + 1)
    assert counted == pytest.approx(expected + 4 * unread, rel=0.01)  # the tower's last layer, of two models and two rows


def test_cached_logits_are_the_live_teachers(work, trained, tmp_path):
    training, adapters, corpus = trained
    signal = gpu_step.keep(work, adapters["teacher"], corpus, tmp_path / "signal")
    kept = CachedStreamVoice(signal, corpus, torch.device("cpu"))
    part = training.feed.part([[5]])
    assert isinstance(part.batch, Batch)
    live = training.voice.hear(part, part.batch, {}, False, False)
    cached = kept.hear(part, part.batch, {}, False, False)
    torch.testing.assert_close(cached.logits, live.logits, rtol=1e-5, atol=1e-5)


def test_the_script_writes_what_it_says(tmp_path, monkeypatch, capsys):
    out = tmp_path / "step.json"
    arguments = "--tiny --device cpu --steps 1 --rows 2 --micro-rows 1 --recipes ce+fkl@fixed ce+fkl@instance --out"
    monkeypatch.setattr(sys, "argv", ["gpu_step.py", *arguments.split(), str(out)])
    gpu_step.main()
    result = json.loads(out.read_text())
    assert [(s["recipe"], s["teacher"]) for s in result["steps"]] == [
        (recipe, kind) for recipe in ("ce+fkl@fixed", "ce+fkl@instance") for kind in ("live", "cached")
    ]
    assert all(step["seconds"] > 0 and 0 < step["mfu"] < 1 for step in result["steps"])
    assert set(result["beta_over_fixed"]) == {"ce+fkl@instance, live", "ce+fkl@instance, cached"}
    assert "| `ce+fkl@instance` | cached |" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out


def test_scaling_is_computed_from_a_measured_step(tmp_path, monkeypatch, capsys):
    """At one rate for everything, the hours are operations over rate, and a GPU for each training leaves one round."""
    work = scaling.stages(load_preset(scaling.PRESET))
    step = [{"teacher": kind, "flops": 4e14, "seconds": 2.0} for kind in ("none", "live", "cached")]
    (tmp_path / "step.json").write_text(json.dumps({"steps": step}))
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--step", str(tmp_path / "step.json"), "--gpus", "1", "36"])
    scaling.main()
    told = capsys.readouterr().out
    student = sum(each.rows * each.student for each in work)
    teacher = [each.rows * each.teacher for each in work]
    live, once, widest = student + sum(teacher), 36 * student + sum(teacher), student + max(teacher)
    hour = 2e14 * 3600
    assert f"| 1 | 1 | 36 | {36 * live / hour:,.0f} | {once / hour:,.0f} |" in told
    assert f"| 36 | 36 | 1 | {live / hour:,.0f} | {widest / hour:,.0f} |" in told
