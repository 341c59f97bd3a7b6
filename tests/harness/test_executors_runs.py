"""Whole runs: the same on both executors, and a student that fails alone, in summary, report and manifest."""

import pandas as pd
import pytest
from test_cli import COMMON, call

from harness import store
from harness.base import read_json, write_json


def _digests(root):
    """The stages' digests, but for the report's, which reads how many seconds each step took."""
    return {entry.stage: entry.digest for entry in store.entries(root) if entry.stage != "report"}


@pytest.mark.slow
def test_ray_and_local_give_the_same_digests_and_scores(finished, tmp_path, tiny):
    common = ("--preset", tiny, *COMMON)
    done = call(*common, "--executor", "ray", "--out", "ray", cwd=tmp_path, RAY_ADDRESS="")
    assert done.returncode == 0, done.stderr
    assert "report: " in done.stdout
    assert "raylet" not in done.stdout + done.stderr
    assert _digests(finished) == _digests(tmp_path / "ray")
    assert "student/ce+fkl@instance/seed0" in _digests(tmp_path / "ray")
    for frame in ("scores", "diagnostics"):
        one, other = (pd.read_parquet(root / f"{frame}.parquet") for root in (finished, tmp_path / "ray"))
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    again = call(*common, "--out", "ray", cwd=tmp_path)
    assert "nothing to do" in again.stdout


@pytest.mark.slow
def test_a_student_that_fails_thrice_fails_alone(tmp_path, tiny):
    root = tmp_path / "run"
    write_json(root / "manifest.json", {"preset": {"name": "tiny"}})
    obstacle = root / "students" / "ce+fkl@fixed"
    obstacle.parent.mkdir()
    obstacle.write_text("a file where the student's folder should be")
    both = ("--preset", tiny, "--tasks", "pope", "--out", "run", "--students", "ce,ce+fkl@fixed")
    done = call(*both, cwd=tmp_path)
    assert done.returncode == 4
    assert "attempt 3" in done.stdout
    assert "FAILED: student ce+fkl@fixed seed0: NotADirectoryError" in done.stdout
    assert "1 stage that reads from it left out" in done.stdout
    assert done.stderr.count("error: stage student/ce+fkl@fixed/seed0 failed") == 1
    assert "to try again: python -m harness.run" in done.stderr
    assert (root / "students" / "ce" / "seed0" / "student").is_dir()
    assert set(pd.read_parquet(root / "scores.parquet")["student"]) == {"teacher", "base", "ce"}
    report = (root / "report" / "report.md").read_text()
    assert "FAILED, and missing here: student ce+fkl@fixed seed0: NotADirectoryError" in report
    assert len(read_json(root / "manifest.json")["failed"]) == 1
    obstacle.unlink()
    again = call(*both, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read_json(root / "manifest.json")["failed"] == []
    assert "FAILED" not in (root / "report" / "report.md").read_text()
    assert "ce+fkl@fixed" in set(pd.read_parquet(root / "scores.parquet")["student"])
