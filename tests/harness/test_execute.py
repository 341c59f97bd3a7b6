"""The executor and its workers: order, failures, and no orphans."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_plan import stage

from harness import plan, workers
from harness.base import UserError
from harness.execute import StageError
from harness.workers import Settings


def test_stages_wait_for_what_they_read(carry_out):
    stages = [stage("a"), stage("b"), stage("both", reads=["a.txt", "b.txt"])]
    log = carry_out(stages, count=2)
    assert log.worked[-1] == "both"
    assert (carry_out.root / "both.txt").read_text() == "bothab"


def test_stages_of_one_job_share_a_workers_memory(carry_out):
    stages = [stage(n, run="remember", job="one", key=k) for n, k in [("a", "x"), ("b", "x"), ("c", "y")]]
    carry_out(stages, count=2)
    assert [(carry_out.root / f"{n}.txt").read_text() for n in "abc"] == ["1", "1", "2"]


def test_on_a_gpu_a_stage_finds_nothing_of_another_kind(tmp_path):
    memory, settings = {}, Settings(tmp_path / "run", "cuda", 1)
    (tmp_path / "run").mkdir()
    job = [stage(n, run="remember", key="x") for n in "abc"]
    job[2] = dataclasses.replace(job[2], kind="another")
    assert workers.work(job, dict.fromkeys("abc", "digest"), settings, memory, lambda _: None)
    assert [(tmp_path / "run" / f"{n}.txt").read_text() for n in "abc"] == ["1", "1", "1"]
    assert memory["made"] == [1]  # b found a's; c made its own


def test_interrupted_job_repeats_only_its_unfinished_stages(carry_out, tmp_path):
    job = [stage("a", job="one"), stage("f", run="folder", targets=("f",), job="one", how="exit"), stage("c", job="one")]
    with pytest.raises(StageError):
        carry_out(job)
    (tmp_path / "survive").touch()
    assert carry_out(job).worked == ["f"]


def test_workers_see_the_presets_threads(carry_out):
    carry_out([stage("t", run="threads")])
    assert (carry_out.root / "t.txt").read_text() == "11"


def test_output_of_libraries_goes_to_a_log(carry_out, capfd):
    carry_out([stage("n", run="chatter")])
    captured = capfd.readouterr()
    assert "noise" not in captured.out + captured.err
    assert "noise on stdout" in (carry_out.root / "logs" / "worker-0.log").read_text()


def test_bad_input_found_by_a_stage_is_a_user_error(carry_out):
    with pytest.raises(UserError, match=r"^this input is bad \(stage f\)$"):
        carry_out([stage("f", run="folder", targets=("f",), how="refuse")])


def test_failing_stage_names_itself_and_brings_its_traceback(carry_out):
    with pytest.raises(StageError, match="stage f failed: ValueError: a bug") as caught:
        carry_out([stage("f", run="folder", targets=("f",), how="raise"), stage("later", reads=["f"])])
    assert "fake_stages.py" in caught.value.trace
    assert not (carry_out.root / "later.txt").exists()


def test_plan_that_reads_what_nothing_writes_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"no stage writes x\.txt"):
        plan.survey(tmp_path, [stage("a", reads=["x.txt"])])


def test_a_stage_that_stands_twice_in_a_plan_is_a_bug(carry_out):
    with pytest.raises(RuntimeError, match="the plan has two stages a"):
        carry_out([stage("a"), stage("b"), stage("a")])


_DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
if __name__ == "__main__":
    from fake_plan import Log, stage
    from harness import store
    from harness.execute import Execution
    from harness.executors import make
    from harness.workers import Settings
    root = Path(sys.argv[1])
    with store.locked(root, "fake"):
        stages, settings = [stage("s", run="sleep")], Settings(root, "cpu", 1)
        executor = make(sys.argv[2], settings, 1)
        try:
            Execution(stages, set(), settings, executor, Log(), lambda _: None).run()
        finally:
            executor.stop()
"""


def test_no_worker_outlives_a_killed_parent(tmp_path):
    here = Path(__file__).parent
    driver = tmp_path / "driver.py"
    driver.write_text(_DRIVER.format(paths=[str(here), str(here.parents[1])]))
    parent = subprocess.Popen([sys.executable, str(driver), str(tmp_path / "run"), "local"])
    pid = _wait_for(tmp_path / "pid")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)


def _wait_for(path, seconds=15):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} never appeared")


def _alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
