"""The commands as a user meets them: subprocesses, exit codes, one line for a mistake and no traceback."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import harness
from harness.base import write_json

HOME = Path(harness.__file__).parents[1]


#: What the whole runs do that tests compare with each other.
COMMON = ("--students", "ce,ce+fkl@instance", "--tasks", "pope,textvqa")


def call(*arguments, cwd, module="harness.run", **environment):
    """Run a command of the harness from any folder."""
    env = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=env, check=False
    )


@pytest.mark.parametrize("module", ["harness.run", "harness.report", "harness.check"])
def test_help_has_examples(tmp_path, module):
    done = call("--help", cwd=tmp_path, module=module)
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"python -m {module} --" in done.stdout


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """A path on which torch, transformers and lmms_eval end the process: what only tells or plans must not load them."""
    folder = tmp_path_factory.mktemp("light")
    for name in ("torch", "transformers", "lmms_eval"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    return f"{folder}{os.pathsep}{HOME}"


def test_list_names_everything_that_can_be_asked_for(tmp_path, light):
    done = call("--list", cwd=tmp_path, PYTHONPATH=light)
    assert done.returncode == 0, done.stderr
    words = "miniature smoke easyvqa ce+fkl@fixed@lambda4 cosine_probs instance lambda0.3 pope@miniature"
    for word in words.split():
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


BAD = {
    ("--preset", "smok"): "unknown preset 'smok'. Did you mean 'smoke'",
    ("--preset", "gone.yaml"): "does not exist",
    ("--students", "ce+fk1"): "Did you mean 'fkl'?",
    ("--students", "nosuch*"): "matches no recipe",
    ("--students", "ce+fkl@fixed@lambda5"): "Did you mean 'lambda4'",
    ("--tasks", "pop"): "Did you mean 'pope'",
    ("--seeds", "0,x"): "'x' is not a seed",
    ("--limit", "0"): "--limit is 0",
    ("--limit", "many"): "--limit",
    ("--device", "tpu"): "allowed: auto, cpu, cuda",
    ("--executor", "rai"): "Did you mean 'ray'?",
    ("--bogus",): "No such option",
    ("surplus",): "unexpected extra argument",
    ("--preset", "easyvqa", "--retrain-teacher"): "does not say how its models are made",
    ("--export", "ce", "out"): "not a run folder",
    ("--export", "ce"): "requires 2 arguments",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert BAD[arguments] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused(tmp_path):
    done = call("--device", "cuda", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "torch sees no CUDA device" in done.stderr


def test_foreign_folder_is_refused_and_untouched(tmp_path):
    other = tmp_path / "other"
    write_json(other / "manifest.json", {"preset": {"name": "easyvqa"}})
    done = call("--out", other, cwd=tmp_path)
    assert done.returncode == 2
    assert "holds a run of preset 'easyvqa', not 'miniature'" in done.stderr
    assert [p.name for p in other.iterdir()] == ["manifest.json"]


def test_report_needs_a_run(tmp_path):
    cases = {("--run", "x"): "not a run folder", (): "--run is missing", ("--run", "x", "--format", "pd"): "format 'pd'"}
    for arguments, message in cases.items():
        done = call(*arguments, cwd=tmp_path, module="harness.report")
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_other_packages_in_the_current_folder_do_not_shadow_ours(tmp_path):
    """Every run folder holds a ``students/``; somebody's working folder may even hold packages of our names."""
    for room in ("students", "tasks", "reports"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('the wrong package')")
    done = call("--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_dry_run_writes_nothing(tmp_path, tiny, light):
    done = call("--preset", tiny, "--dry-run", cwd=tmp_path, PYTHONPATH=light)
    assert done.returncode == 0, done.stderr
    assert "to do  student ce+fkl@instance seed0" in done.stdout
    assert "stages to do, about" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_interrupt_says_how_to_continue(tmp_path, tiny):
    env = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "harness.run", "--preset", str(tiny), "--out", "run here"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs inherit "ignored"
    )  # fmt: skip
    deadline = time.monotonic() + 90  # a busy machine
    while not list((tmp_path / "run here").glob("logs/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 130
    assert f"to continue: python -m harness.run --preset {tiny} --out 'run here'" in stderr
    assert "Traceback" not in stderr
