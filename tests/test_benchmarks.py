"""benchmarks/losses.py runs and writes what it says; its two sides compute the same losses. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import loss_level
from students import energies

ROOT = Path(__file__).resolve().parent.parent
SMALL = loss_level.Shape("small", rows=2, length=12, supervised=3, vocabulary=23, width=8, vision=4, heads=2)


def sides(name):
    case = loss_level.Case(SMALL)
    energy = None if name == "ce" else energies.build(name, widths=case.widths, **loss_level.OPTIONS.get(name, {}))
    return case, loss_level.ours(name, case, energy), loss_level.plain(name, case, energy)


@pytest.mark.parametrize("name", loss_level.comparable())
def test_the_plain_implementation_computes_the_same_loss(name):
    case, ours, plain = sides(name)
    mine, other = loss_level.first(case, ours), loss_level.first(case, plain)
    assert mine.value > 0
    torch.testing.assert_close(mine.value, other.value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mine.gradient, other.gradient, rtol=1e-3, atol=1e-6)


def test_plain_counterparts_are_of_energies_that_exist():
    assert set(loss_level.comparable()) <= {"ce", *energies.names()}


def test_kept_bytes_are_counted_once_and_inputs_not_at_all():
    case = loss_level.Case(SMALL)
    numbers = case.hidden.numel()

    def loss():
        made = case.hidden.exp()  # keeps its result
        return (made * made).sum() + (case.hidden * 2).sum()  # keeps the same tensor, twice, and nothing

    assert loss_level.first(case, loss).kept == 4 * numbers


def test_the_peak_is_what_the_allocator_held_at_once():
    case = loss_level.Case(SMALL)
    size = 4 * case.hidden.numel()

    def loss():
        return case.hidden.exp().sum()

    found = loss_level.peak(case, loss)
    assert 2 * size <= found < 2.5 * size  # the exponentials and the gradient


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = ["--steps", "2", "--images", "6", "--energies", "fkl,fd", "--weightings", "beta_task,famo"]
    command = [sys.executable, str(ROOT / "benchmarks" / "losses.py"), *arguments, "--out", "made/losses.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value = json.loads((folder / "made" / "losses.json").read_text())
    return value, done.stdout, (folder / "made" / "losses.md").read_text()


def test_every_student_has_a_row_with_a_ratio_and_a_spread(result):
    value, _, _ = result
    assert [row["recipe"] for row in value["steps"]] == [
        "ce", "ce+fkl@fixed", "ce+fd@fixed", "ce+fkl@beta_task", "ce+fkl@famo"
    ]  # fmt: skip
    for row in value["steps"]:
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["wall_ratio"] > 0
    assert value["baseline"]["rounds"] == 2
    assert value["baseline"]["processor_ms"] > 0


def test_extra_passes_are_named_and_have_no_target(result):
    value, _, _ = result
    extra = {row["name"]: row["extra_pass"] for row in value["steps"] if row["extra_pass"]}
    assert extra == {"fd": ["live teacher (vision)"], "famo": ["a second forward pass"]}
    assert not any(row["above_target"] for row in value["steps"] if row["extra_pass"])


def test_both_sides_of_every_loss_are_measured_in_both_shapes(result):
    value, _, _ = result
    assert [(row["shape"], row["energy"]) for row in value["losses"]] == [
        (shape, name) for shape in ("miniature", "larger") for name in ("ce", "fkl", "fd")
    ]
    for row in value["losses"]:
        assert min(row[f"{side}{what}"] for side in ("", "plain_") for what in ("microseconds", "kept_bytes", "peak_bytes")) > 0
        assert row["value_gap"] < 1e-4
        assert row["gradient_gap"] < 1e-4
    kept = {(row["shape"], row["energy"]): row for row in value["losses"]}["larger", "fkl"]
    assert kept["plain_kept_bytes"] > 3 * kept["kept_bytes"]  # a tenth of the positions is supervised


def test_machine_and_versions_are_on_record_and_the_tables_are_printed(result):
    value, printed, markdown = result
    assert value["threads"] == 1
    assert value["versions"]["torch"]
    assert value["hardware"]["processor"]
    assert "losses.py --steps 2" in value["command"]
    for text in (printed, markdown):
        assert "weighting beta_task" in text
        assert "second forward" in text
        assert "'larger'" in text


@pytest.mark.parametrize(("arguments", "message"), [(["--energies", "fk"], "'fkl'"), (["--out", "table.csv"], ".json")])
def test_bad_input_is_one_line(arguments, message, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "losses.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
