"""The whole way, small: one command, no network, every file of the contract; again, damaged, killed, exported."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from test_cli import COMMON, HOME, call

from harness.base import read_json, read_jsonl
from students.checkpoint import digest_weights

SCORES = [
    "student", "kind", "seed", "protocol", "protocol_version", "id", "cluster", "group", "gold", "prediction", "score",
    "unparseable",
]  # fmt: skip
DIAGNOSTICS = ["student", "seed", "protocol", "id", "nll", "confidence", "entropy", "teacher_agrees", "teacher_kl"]


@pytest.fixture(scope="session")
def run(finished):
    """The finished run, by a short name."""
    return finished


def test_every_file_of_the_contract_is_there(run):
    for recipe in ("ce", "ce+fkl@instance"):
        folder = run / "students" / recipe / "seed0"
        assert (folder / "student" / "model.safetensors").is_file()
        assert len(read_jsonl(folder / "dynamics.jsonl")) == 4
        assert (folder / "betas.parquet").is_file()
        assert (folder / "snapshots.npz").is_file()
    for name in ("teacher", "base", "ce", "ce+fkl@instance"):
        for protocol in ("pope@miniature", "textvqa@miniature"):
            replies = read_jsonl(run / "replies" / name / "seed0" / f"{protocol}.jsonl")
            assert set(replies[0]) == {"id", "cluster", "group", "prompt_sha256", "reply", "tokens"}
    questions = pd.read_parquet(run / "questions" / "pope@miniature.parquet")
    assert list(questions.columns) == ["id", "cluster", "group", "image", "prompt", "gold"]
    assert all((run / "images" / f"{key}.png").is_file() for key in questions["image"].dropna())
    for name in ("report.md", "report.tex", "index.html"):
        assert (run / "report" / name).is_file()
    assert not list(run.rglob("*.partial")) + list(run.rglob("*.tmp"))


def test_frames_keep_the_contract(run):
    scores, diagnostics = pd.read_parquet(run / "scores.parquet"), pd.read_parquet(run / "diagnostics.parquet")
    assert list(scores.columns) == SCORES
    assert list(diagnostics.columns) == DIAGNOSTICS
    assert scores["seed"].isna().equals(scores["kind"].isin(["teacher", "base"]))
    assert len(set(scores.groupby("student").size())) == 1
    keys = ["student", "seed", "protocol", "id"]
    assert not scores.duplicated(keys).any()
    assert scores[keys].equals(diagnostics[keys])
    assert diagnostics["teacher_kl"].isna().equals(diagnostics["student"] == "teacher")
    assert set(scores["id"].map(type)) == {str}


def test_manifest_says_what_was_run(run):
    manifest = read_json(run / "manifest.json")
    assert manifest["preset"]["name"] == "tiny"
    assert manifest["students"] == ["ce", "ce+fkl@instance"]
    assert manifest["seeds"] == [0]
    assert set(manifest["protocols"]) == {"pope@miniature", "textvqa@miniature"}
    assert set(manifest["protocols"]["pope@miniature"]) == {"version", "digest", "rows", "expected_rows", "constant"}
    assert set(manifest["weights"]) == {"tower", "teacher", "base"}
    assert manifest["overrides"] == {"students": "ce,ce+fkl@instance", "tasks": "pope,textvqa"}
    assert manifest["threads"] == 1
    assert manifest["hardware"]["device"] == "cpu" or "cuda" in manifest["hardware"]["device"]


def test_again_repeats_nothing_and_a_part_of_it_neither(run, work, tiny):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")}
    for students in ("ce,ce+fkl@instance", "ce"):
        done = call("--preset", tiny, "--students", students, "--tasks", "pope", "--out", "run", cwd=work)
        assert done.returncode == 0, done.stderr
        assert "nothing to do" in done.stdout
        assert "report/index.html" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")}


@pytest.mark.parametrize("file", ["students/ce/seed0/student/model.safetensors", "replies/ce/seed0/pope@miniature.jsonl"])
def test_truncated_file_is_named(run, work, tiny, file):
    path = run / file
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    done = call("--preset", tiny, "--students", "ce", "--tasks", "pope", "--out", "run", cwd=work)
    path.write_bytes(whole)
    assert done.returncode == 2
    assert f"{path} is damaged" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_truncated_signal_is_never_used(run, work, tiny):
    """It is a cache: nobody minds where all students are there, and it is made again where one is not."""
    path = run / "teacher" / "signal" / "logits.npy"
    whole, made = path.read_bytes(), path.stat()
    path.write_bytes(whole[:1000])
    done = call("--preset", tiny, "--students", "ce", "--tasks", "pope", "--out", "run", cwd=work)
    more = call("--preset", tiny, "--students", "ce,fkl", "--tasks", "pope", "--out", "run", "--dry-run", cwd=work)
    path.write_bytes(whole)
    os.utime(path, ns=(made.st_atime_ns, made.st_mtime_ns))
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr
    assert "logits.npy is damaged" in more.stdout and "the cache is made again" in more.stdout
    assert "teacher signal: exact, float32" in done.stdout


def test_export_is_a_checkpoint_with_a_card(run, work, tiny):
    arguments = ("--preset", tiny, "--out", "run", "--export", "ce+fkl@instance", "exported")
    done = call(*arguments, cwd=work)
    assert done.returncode == 0, done.stderr
    out = work / "exported"
    assert digest_weights(out) == digest_weights(run / "students" / "ce+fkl@instance" / "seed0" / "student")
    text = (out / "README.md").read_text()
    assert "ce+fkl@instance" in text and "Miniature" in text and "| pope@miniature |" in text
    again = call(*arguments, cwd=work)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    absent = call("--preset", tiny, "--out", "run", "--export", "fkl", "other", cwd=work)
    assert (absent.returncode, "holds no finished student 'fkl'" in absent.stderr) == (2, True)


def test_report_again_from_the_files_alone(run, work, tiny):
    page = run / "report" / "index.html"
    page.unlink()
    done = call("--run", "run", cwd=work, module="harness.report")
    assert done.returncode == 0, done.stderr
    assert page.is_file()
    arguments = ("--preset", tiny, "--students", "ce", "--tasks", "pope", "--out", "run", "--dry-run")
    assert "nothing to do" in call(*arguments, cwd=work).stdout
    part = call("--run", "run", "--format", "md", cwd=work, module="harness.report")
    assert part.returncode == 0, part.stderr
    assert page.is_file()
    assert "\n1 of " in call(*arguments, cwd=work).stdout  # only the report, and nothing is called damaged


# ---- killed ----

#: A file of each kind of stage while it is being written, in the order in which a run comes by them.
MOMENTS = (
    "data.partial",
    "teacher/signal.partial",
    "students/ce+fkl@instance/seed0.partial/dynamics.jsonl",
    "replies/ce+fkl@instance/seed0/pope@miniature.jsonl.partial",
    "report.partial/figures",
)


def _result(root):
    """What has to be the same whatever happened on the way."""
    weights = {p.as_posix().removeprefix(f"{root}/"): digest_weights(p) for p in sorted(root.glob("students/*/seed*/student"))}
    frames = {name: pd.read_parquet(root / f"{name}.parquet") for name in ("scores", "diagnostics")}
    betas = {p.parent.parent.name: pd.read_parquet(p) for p in sorted(root.glob("students/*/seed*/betas.parquet"))}
    return weights, frames, betas


def _assert_same(first, second):
    assert first[0] == second[0]
    assert first[0]
    for mine, other in zip(first[1:], second[1:], strict=True):
        assert mine.keys() == other.keys()
        for name, frame in mine.items():
            pd.testing.assert_frame_equal(frame, other[name], check_exact=True)


def _stamp(path):
    """What tells a file that is there from one that a killed process left there before."""
    try:
        found = path and path.stat()
    except OSError:  # it comes and goes, and so does the folder it is in
        return None
    return found and (found.st_ino, found.st_mtime_ns)


def _kill_at(command, cwd, env, moment, rng):
    """Start the command, wait for a file to appear (or for some seconds), and kill it; it must not have ended before."""
    before = _stamp(moment)
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + (300 if moment else rng.uniform(0.5, 8))
    while process.poll() is None and time.monotonic() < deadline and _stamp(moment) in (None, before):
        time.sleep(0.002)
    seen = moment is None or _stamp(moment) not in (None, before)
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert seen, f"no {moment} within 300 s or before its end: {errors}"
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.slow
def test_killed_anywhere_it_ends_as_if_it_had_not_been(run, tmp_path, tiny):
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    print(f"seed of the random moments: {seed}")  # noqa: T201 - shown when the test fails
    moments = [*MOMENTS]
    moments.insert(rng.randrange(len(MOMENTS) - 1), None)  # while there is enough left to do for seconds
    env = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "harness.run", "--preset", str(tiny), *COMMON, "--out", "killed"]
    for moment in moments:
        if moment and (tmp_path / "killed" / moment.split(".partial")[0]).exists():
            continue  # the random one came after it
        _kill_at(command, tmp_path, env, moment and tmp_path / "killed" / moment, rng)
    last = call("--preset", tiny, *COMMON, "--out", "killed", cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    _assert_same(_result(run), _result(tmp_path / "killed"))
    assert not list((tmp_path / "killed").rglob("*.partial"))
    again = call("--preset", tiny, *COMMON, "--out", "killed", cwd=tmp_path)
    assert "nothing to do" in again.stdout


@pytest.mark.slow
def test_workers_do_not_change_the_result(run, tmp_path, tiny):
    one = tmp_path / "one.yaml"
    one.write_text(f"extends: {Path(tiny).name}\nworkers: 1\n")
    (tmp_path / Path(tiny).name).write_text(Path(tiny).read_text())
    done = call("--preset", one, *COMMON, "--out", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _assert_same(_result(run), _result(tmp_path / "one"))
    assert [read_json(root / "manifest.json")["preset"]["workers"] for root in (run, tmp_path / "one")] == [None, 1]
