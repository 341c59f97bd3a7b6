"""What both executors promise: retries, stages that fail alone, no orphans; and what runs at once on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_plan import stage
from test_caching import SIZE, cache
from test_execute import _DRIVER, _alive, _wait_for

from harness import plan
from harness.base import UserError
from harness.execute import DiskFull, StageError
from harness.executors import check_name
from harness.executors.local import Local
from harness.executors.on_ray import OnRay
from harness.resources import DEFAULTS, Machine, Resources, machine, of_kind
from harness.workers import Settings

#: A cluster of one machine takes seconds to start.
EXECUTORS = [pytest.param(Local, id="local"), pytest.param(OnRay, id="ray", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Ray starts a cluster of its own, which finds the fake stages."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    home = Path(__file__).resolve()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (home.parent, home.parents[2]))))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_breaks_is_tried_again_and_fails_alone(carry_out, tmp_path, executor):
    """One plan for all ways to break, carried out once per executor."""
    stages = [
        stage("good"),
        stage("killed", run="once", how="kill", reads=["good.txt"]),
        stage("raised", run="once", how="raise"),
        stage("half", run="resume", resumes=True),
        stage("never", run="folder", targets=("never",), how="raise"),
        stage("dies", run="folder", targets=("dies",), how="kill"),
        stage("infinite", run="infinite"),
        stage("reads", reads=["never/first.txt", "good.txt"]),
        stage("reads_more", reads=["reads.txt"]),
        stage("after", reads=["killed.txt", "raised.txt", "half.txt"]),
    ]
    log = carry_out(stages, count=2, executor=executor, raises=False)
    assert sorted(log.worked) == ["after", "good", "half", "killed", "raised"]
    assert (carry_out.root / "after.txt").read_text() == "afterkilledgoodraisedfirst second"
    assert sorted(log.left) == ["reads", "reads_more"]
    failed = {failure.stage: failure for failure in log.failures}
    assert {name: failure.attempts for name, failure in failed.items()} == {"never": 3, "dies": 3, "infinite": 1}
    assert failed["never"].lost == ("reads", "reads_more")
    assert failed["never"].text == "ValueError: a bug" and "fake_stages.py" in failed["never"].trace
    assert "its worker died" in failed["dies"].text
    assert [again for name, _, again, _ in log.failed if name == "never"] == [True, True, False]
    assert not list(carry_out.root.rglob("*.jsonl"))
    (tmp_path / "survive").touch()
    again = carry_out([s for s in stages if s.id != "infinite"], executor=Local)
    assert sorted(again.worked) == ["dies", "never", "reads", "reads_more"]


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_command_that_ends(tmp_path, executor, how):
    here = Path(__file__).parent
    driver = tmp_path / "driver.py"
    driver.write_text(_DRIVER.format(paths=[str(here), str(here.parents[1])]))
    command = [sys.executable, str(driver), str(tmp_path / "run"), executor]
    parent = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs inherit "ignored"
    )  # fmt: skip
    try:
        pid = _wait_for(tmp_path / "pid", 60)
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)  # as a terminal does
        else:
            parent.kill()
        parent.wait(60)
    finally:
        parent.kill()
    deadline = time.monotonic() + 60
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)


@pytest.mark.slow
def test_caches_and_a_full_disk_on_ray(carry_out, tmp_path):
    """The bound holds, what goes is made again for who ``uses`` it, and a full disk ends the run, as with --executor local."""
    caches = [cache(n, run="watch") for n in "abc"]
    stages = [each for n, c in zip("abc", caches, strict=True) for each in (c, stage(n, run="watch", reads=c.targets))]
    carry_out(stages, count=2, executor=OnRay, bound=2 * SIZE)
    held = [int(line.split()[1]) for line in (tmp_path / "held.log").read_text().splitlines()]
    assert len(held) == 6 and max(held) <= 2 * SIZE
    lost = next(each for each in caches if not (carry_out.root / each.targets[0]).exists())
    stages += [replace(stage("later"), uses=lost.targets), stage("f", run="full", targets=("f",), reads=["later.txt"])]
    with pytest.raises(DiskFull, match=r"for stage f .*Make room there"):
        carry_out(stages, executor=OnRay, bound=2 * SIZE)
    assert plan.survey(carry_out.root, stages) >= {"a", "b", "c", "later"}
    assert (carry_out.root / lost.targets[0]).exists()
    (tmp_path / "room").touch()
    assert carry_out(stages, bound=2 * SIZE).worked == ["f"]


def test_ray_says_when_nothing_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS is '127\.0\.0\.1:1', and no Ray cluster answers there"):
        OnRay(Settings(tmp_path, "cpu", 1), 1)


def test_unknown_executor_is_named():
    with pytest.raises(UserError, match=r"'rai'\. Did you mean 'ray'"):
        check_name("rai")


# ---- what runs at once on one machine ----


@pytest.mark.parametrize(
    ("cpus", "memory", "bound", "most"), [(2, 4.0, None, 2), (1, 4.0, None, 1), (8, 0.25, None, 2), (8, 4.0, 3, 3)]
)
def test_as_many_run_at_once_as_the_machine_allows(tmp_path, cpus, memory, bound, most):
    local = Local(Settings(tmp_path, "cpu", 1), bound, Machine(cpus, (), memory, 4.0))
    started = 0
    for number in range(6):
        one = [stage(f"s{number}", resources=Resources(memory_gb=0.12))]
        if local.fits(one):
            local._busy.append(_busy(one[0].resources, ()))
            started += 1
    assert started == most


def _busy(needs, devices):
    from harness.executors.local import Worker

    return Worker(0, None, None, devices, needs=needs)


def test_gpus_are_given_out_and_shared(tmp_path):
    local = Local(Settings(tmp_path, "cuda", 1), None, Machine(8, ("4", "7"), 40.0, 40.0))
    whole, half = Resources(gpus=1), Resources(gpus=0.5)
    assert local._devices(whole) == ("4",)
    local._busy.append(_busy(whole, ("4",)))
    local._busy.append(_busy(half, ("7",)))
    assert local._devices(half) == ("7",)  # the other half of one, rather than the whole of another
    assert local._devices(whole) is None
    assert not local.fits([stage("s", resources=whole)])
    assert local.fits([stage("s", resources=Resources())])


def test_a_stage_larger_than_the_machine_is_refused(tmp_path):
    local = Local(Settings(tmp_path, "cuda", 1), None, Machine(8, ("0",), 8.0, 16.0))
    with pytest.raises(UserError, match=r"resources\.fake\.gpus is 2, and torch sees 1 GPU"):
        local.check([stage("s", resources=Resources(gpus=2))])
    with pytest.raises(UserError, match=r"resources\.fake\.memory_gb is 64, and this machine has 16\.0 GB"):
        local.check([stage("s", resources=Resources(memory_gb=64))])
    local.check([stage("s", resources=Resources(memory_gb=12, cpus=64))])
    assert local.fits([stage("s", resources=Resources(memory_gb=12))])  # alone, for it might fit after all


def test_worker_sees_its_gpus_only(carry_out):
    def on_gpus(settings, count, there):
        moved = Settings(settings.root, "cuda", 1)
        return Local(moved, count, Machine(2, ("3", "5"), 4.0, 4.0))

    carry_out([stage("v", run="visible", resources=Resources(gpus=2))], executor=on_gpus)
    assert json.loads((carry_out.root / "v.txt").read_text()) == "3,5"


def test_preset_says_what_a_kind_of_stage_takes():
    assert of_kind("student", 4, {}) == Resources(cpus=4, gpus=1, memory_gb=1.7)
    assert of_kind("student", 4, {"student": Resources(memory_gb=48)}) == Resources(cpus=4, gpus=1, memory_gb=48)
    assert of_kind("report", 1, {}).gpus == 0


def test_every_kind_of_stage_takes_something():
    from harness import blueprint
    from harness.stages import vision

    assert {*blueprint._SECONDS, vision.KIND} == set(DEFAULTS)


def test_this_machine_has_something():
    found = machine("cpu")
    assert 1 <= found.cpus <= (os.cpu_count() or 1)
    assert 0 < found.memory_gb <= found.whole_memory_gb


def test_one_error_names_every_stage_that_failed(carry_out):
    with pytest.raises(StageError, match=r"stage a failed: ValueError: a bug \(3 attempts\); stage b failed"):
        carry_out([stage(n, run="folder", targets=(n,), how="raise") for n in "ab"])
