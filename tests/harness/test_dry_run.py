"""The plan of real runs as a command, and what a machine cannot do; no network, no GPU, no torch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from no_network import block
from small_models import model

import harness
from harness import config, needs
from harness.base import UserError

HOME = Path(harness.__file__).parents[1]


@pytest.fixture
def call(tmp_path):
    """Run the command with the network blocked, an empty hub cache, and no torch, transformers or lmms_eval to import."""
    light = block(tmp_path / "light")
    work = tmp_path / "work"
    work.mkdir()

    for name in ("torch", "transformers", "lmms_eval"):
        (light / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")

    def do(*arguments):
        path = f"{light}{os.pathsep}{HOME}"
        env = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(tmp_path / "hub"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
            env.pop(name, None)
        command = [sys.executable, "-m", "harness.run", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=work, env=env, check=False)

    do.work = work
    return do


def test_the_block_blocks(call):
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    env = {**os.environ, "PYTHONPATH": str(call.work.parent / "light")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (77, "the network was reached for\n")
    assert socket.socket.connect.__name__ == "connect"  # and only there


# ---- the command -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "offline"), [("paper-table1", False), ("paper-table4", True), ("paper-table5", False)])
def test_the_plan_of_a_table_is_shown_with_nothing_there(call, name, offline):
    done = call("--preset", name, "--dry-run", *(["--offline"] if offline else []))
    assert done.returncode == 0, done.stderr
    for words in (
        "MISSING: ",
        "Models",
        "Training data",
        "GPU memory",
        "disk: about",
        "no GPU that torch can use",
        "required: a GPU",
    ):
        assert words in done.stdout
    assert "hours: none are given, because there is no GPU here" in done.stdout
    assert "stages to do" in done.stdout and " h " not in done.stdout.splitlines()[-1]
    assert not list(call.work.iterdir()), "a plan writes nothing"
    count = int(done.stdout.partition("MISSING: ")[2].split()[0])
    listed = [
        line
        for line in done.stdout.splitlines()
        if line.strip().split(".")[0].isdigit() and ("model " in line or "corpus" in line or "benchmark" in line)
    ]
    assert len(listed) == count
    for hub_id in {config.load_preset(name).models.teacher, *config.load_preset(name).models.external.values()}:
        assert hub_id in done.stdout


def test_a_run_that_lacks_something_names_the_first_thing_and_how_many_more(call):
    done = call("--preset", "paper-table4", "--offline")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: model teacher: mtgv/MobileVLM_V2-7B is not in the hub's cache")
    assert "more missing: --dry-run lists them all" in line
    assert not list(call.work.iterdir())
    planned = call("--preset", "paper-table4", "--offline", "--dry-run").stdout
    count = int(planned.partition("MISSING: ")[2].split()[0])
    assert f"({count - 1} more missing" in line


def test_data_that_are_missing_stop_a_run_before_any_download(call, tmp_path):
    done = call("--preset", "paper-table4", "--data-root", tmp_path / "data")  # not offline: models could be fetched
    assert done.returncode == 2
    assert "error: corpus captions:" in done.stderr
    assert "share-captioner_coco_lcs_sam_1246k_1107.json" in done.stderr
    assert "Lin-Chen/ShareGPT4V" in done.stderr
    assert "network was reached" not in done.stderr


OPTIONS = {
    ("--preset", "official", "--live-teacher", "--model", "m=x"): "trains nothing",
    ("--skip-unreadable", "2"): "reads no corpus",
    ("--skip-unreadable", "-1"): "--skip-unreadable",
    ("--skip-unreadable", "some"): "--skip-unreadable",
    ("--cache-gb", "0"): "--cache-gb is 0; allowed: a number of gigabytes above 0",
    ("--cache-gb", "nan"): "--cache-gb is nan",
    ("--cache-gb", "much"): "--cache-gb",
}


@pytest.mark.parametrize("arguments", OPTIONS, ids=" ".join)
def test_options_that_make_no_sense(call, arguments):
    done = call(*arguments)
    assert done.returncode == 2
    assert OPTIONS[arguments] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_live_teacher_needs_no_signal(call):
    kept = call("--students", "ce+fkl", "--dry-run")
    live = call("--students", "ce+fkl", "--live-teacher", "--dry-run")
    assert kept.returncode == live.returncode == 0, live.stderr
    assert "teacher signal" in kept.stdout
    assert "teacher signal" not in live.stdout
    assert "student ce+fkl@fixed seed0" in live.stdout


def test_caches_are_planned_with_their_form_and_bound(call):
    done = call("--students", "ce+fkl", "--dry-run", "--cache-gb", "1.5")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "cache encode: tokens int32, pictures uint8, its size is known when what it reads is there" in lines
    (total,) = (line for line in lines if line.startswith("caches: "))
    assert total.endswith("--cache-gb allows 1.50 GB at once")
    assert not list(call.work.iterdir())


# ---- what a machine cannot do ----------------------------------------------------------------------------------------------

H100 = needs.Machine("NVIDIA H100", 85_000_000_000, 84_000_000_000, 10**13)


def test_a_preset_that_needs_a_gpu():
    preset = config.load_preset("paper-table2")
    needs.check(preset, "cuda", H100, 0)
    cases = {
        ("cpu", needs.Machine(None, 0, 0, 10**13)): r"'paper-table2' needs a GPU with 60 GB of memory; found: no GPU",
        ("cpu", H100): "--device cpu was given",
        (
            "cuda",
            needs.Machine("T4", 16 * 10**9, 15 * 10**9, 10**13),
        ): "needs a GPU with 60 GB of free memory; found: T4 with 16 GB",
    }
    for (device, machine), message in cases.items():
        with pytest.raises(UserError, match=message):
            needs.check(preset, device, machine, 0)
    with pytest.raises(UserError, match="will write about 200 GB; found: 100 GB of disk free"):
        needs.check(preset, "cuda", needs.Machine("H100", 85 * 10**9, 84 * 10**9, 100 * 10**9), 200e9)
    needs.check(config.load_preset("miniature"), "cpu", needs.Machine(None, 0, 0, 10**13), 0)


def test_a_run_of_such_a_preset_stops_before_anything_is_written(call, tmp_path):
    """All models are there, the data are embedded: only the GPU is missing."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: paper-table2\nname: mine\nprotocols: [pope@miniature]\ncorpora: { scienceqa: { format: embedded } }\n"
        f"models: {{ teacher: {model(tmp_path / 't')}, base: {model(tmp_path / 'b')} }}\n"
    )
    done = call("--preset", path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        "error: preset 'mine' needs a GPU with 60 GB of memory; found: no GPU that torch can use (--dry-run shows the plan"
        " without one)"
    )
    assert not list(call.work.iterdir())


def test_a_gpu_is_asked_by_a_process_of_its_own(monkeypatch, tmp_path):
    asked = []

    def answer(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, 'a warning\n["NVIDIA H100", 85000000000, 84000000000]\n', "")

    monkeypatch.setattr(needs, "has_gpu", lambda: True)
    monkeypatch.setattr(needs.subprocess, "run", answer)
    found = needs.machine(tmp_path / "not" / "there")
    assert (found.gpu, found.gpu_bytes, found.free_gpu_bytes) == ("NVIDIA H100", 85 * 10**9, 84 * 10**9)
    assert found.free_disk_bytes > 0
    compile(asked[0][2], "asked", "exec")
