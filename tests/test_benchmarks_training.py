"""The benchmarks of training: both sides of a step learn the same, what is written was measured. No time is asserted."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import measuring
import plain_step
import step_case
from students import models

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def case():
    with step_case.prepared(step_case.TINY, 4) as made:
        yield made


@pytest.fixture(scope="module", params=[False, "selective", True], ids=["kept", "selective", "recomputed"])
def sides(request, case, tmp_path_factory):
    changed = replace(case, options=case.options.model_copy(update={"gradient_checkpointing": request.param}))
    ours = step_case.Ours(changed, "ce+fkl@fixed", tmp_path_factory.mktemp("ours"))
    plain = plain_step.Plain(case.base, case.teacher, case.options.lr, case.options.clip, request.param is True)
    losses = []
    for members in case.batches:
        ours.step(members)
        losses.append((ours.losses(), {name: float(v) for name, v in plain.step(case.batch(members)).items()}))
    return ours, plain, losses


def test_both_sides_have_the_same_losses_at_every_step(sides):
    _, _, losses = sides
    for mine, other in losses:
        assert mine == pytest.approx(other, rel=1e-5)
        assert min(other.values()) > 0


def test_both_sides_end_with_the_same_weights(sides):
    ours, plain, _ = sides
    other = dict(plain.student.named_parameters())
    for name, mine in ours.training.adapter.model.named_parameters():
        torch.testing.assert_close(mine, other[name], rtol=1e-3, atol=2e-5)


def test_the_plain_side_holds_a_teacher_more(sides, case):
    ours, plain, _ = sides
    teacher = sum(p.numel() * p.element_size() for p in models.load(case.teacher).model.parameters())
    assert plain.standing_bytes() - ours.standing_bytes() == pytest.approx(teacher, rel=0.02)


def test_a_batch_has_the_positions_that_its_size_says(case):
    batch, size = case.batch(case.batches[0]), case.size
    assert batch.input_ids.shape == (size.rows, size.length)
    assert len(batch.labels) == size.rows * size.supervised
    assert models.load(case.base).vocabulary_size == size.vocabulary
    assert case.signal_bytes > 4 * size.vocabulary * size.supervised * len(case.inputs.data)


def test_the_peak_is_beyond_what_there_was():
    kept = torch.ones(1 << 16)
    assert 1 << 18 <= measuring.peak_bytes(lambda: (kept + 1) * 2) <= 3 << 18


def test_operations_are_those_of_a_product():
    a = torch.ones(8, 16)
    assert measuring.operations(lambda: a @ a.T) == 2 * 8 * 16 * 8


def run(folder, script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_one_step_writes_what_it_measured(tmp_path):
    done = run(
        tmp_path, "one_step.py", "--tiny", "--rounds", "1", "--vocabulary", "50", "--rows", "2", "--out", "made/one.json"
    )
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "made" / "one.json").read_text())
    assert [(row["vocabulary"], row["checkpointing"]) for row in value["steps"]] == [(50, False), (50, "selective"), (50, True)]
    for row in value["steps"]:
        assert row["loss_gap"] < 1e-5
        assert row["operations"]["plain"] > row["operations"]["ours"] > 0
        assert min(row["peak_bytes"].values()) > 0
        assert 0 < sum(row["profile"].values()) <= 1
    assert "| 50 | kept |" in (tmp_path / "made" / "one.md").read_text()
    assert "| 50 | kept |" in done.stdout


def test_chunks_and_blocks_of_any_size_give_the_same_gradients(tmp_path):
    done = run(tmp_path, "chunks.py", "--tiny", "--rounds", "1", "--out", "chunks.json")
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "chunks.json").read_text())
    for kind in ("chunks", "blocks"):
        for rows in value[kind]:
            assert len({row["size"] for row in rows}) >= 4
            assert max(row["gap"] for row in rows) < 1e-5
            assert min(row["peak_bytes"] for row in rows) > 0
    assert "| all |" in (tmp_path / "chunks.md").read_text()


def test_bad_output_is_one_line(tmp_path):
    done = run(tmp_path, "growth.py", "--out", "table.csv")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert ".json" in done.stderr


@pytest.mark.slow
def test_growth_writes_tables_and_a_plot(tmp_path):
    done = run(tmp_path, "growth.py", "--tiny", "--rounds", "1", "--out", "growth.json")
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "growth.json").read_text())
    sizes = [row["signal_bytes_a_sample"] for row in value["vocabulary"]]
    assert sizes == sorted(sizes)
    assert [row["students"] for row in value["students"]] == [1, 2, 4, 8, 12]
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert "| students |" in (tmp_path / "growth.md").read_text()


@pytest.mark.slow
def test_every_student_of_twelve_has_a_cost(tmp_path):
    done = run(tmp_path, "many_students.py", "--rounds", "1", "--images", "4", "--out", "many.json")
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "many.json").read_text())
    assert len(value["ratios"]) == 11
    assert min(row["median"] for row in value["ratios"].values()) > 0
