"""The processes of a launch: who directs, what they do together, and how they end."""

import os
import socket
import subprocess
import sys
import time
from ast import literal_eval
from pathlib import Path

import pytest

from harness import ranks

HERE = Path(__file__).parent


def launch(folder, *names, world=2):
    """Start the processes of one launch as a launcher would, without one; return (exit code, stderr) of each, and seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "ranked_command.py"), str(folder), *names],
            env={**os.environ, **shared, "PYTHONPATH": path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in running]
    return [process.returncode for process in running], said, time.monotonic() - started


def test_without_a_launcher_or_with_one_process_there_are_no_ranks():
    assert ranks.find({"HOME": "/"}) is None
    alone = {"RANK": "0", "WORLD_SIZE": "1", "ACCELERATE_USE_FSDP": "true", "HOME": "/"}
    assert ranks.find(alone) is None
    assert alone == {"HOME": "/"}  # what the launcher set would make a library wait for others


def test_only_training_sees_the_engines_variables():
    environment = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1", "FSDP_VERSION": "2", "HOME": "/"}
    found = ranks.find(environment)
    assert (found.rank, found.world, environment) == (1, 4, {"HOME": "/"})
    assert "FSDP_VERSION" in found.environment(engine=True)
    assert "FSDP_VERSION" not in found.environment(engine=False)
    assert found.environment(engine=False)["RANK"] == "1"


def test_stages_are_shared_and_one_that_fails_everywhere_fails_alone(tmp_path):
    codes, said, _ = launch(tmp_path / "run", "alone", "together", "broken", "alone_again", "later")
    assert codes == [4, 4]
    assert (tmp_path / "run/alone.txt").read_text() == "1 []"
    assert (tmp_path / "run/alone_again.txt").read_text() == "1"
    found = literal_eval((tmp_path / "run/together.txt").read_text())
    assert [each[:2] for each in found] == [(0, 2), (1, 2)]
    assert len({each[2] for each in found}) == 2
    assert literal_eval((tmp_path / "run/later.txt").read_text()) == found  # the same processes, after the failure
    assert "error: stage broken failed: ValueError: a bug of the second process (1 attempt)" in said[0]
    assert said[1] == ""


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("refused", 2, "error: this input is bad (stage refused)"),
        ("killed", 4, "error: stage killed failed: process 2 of 2 (rank 1) is gone"),
        ("nonsense", 2, "error: this command makes no sense"),
        pytest.param("full", 4, " for stage full ", marks=pytest.mark.slow),
        pytest.param("left", 4, "a bug of the second process alone (on process 2 of 2", marks=pytest.mark.slow),
        pytest.param("worker_killed", 4, "process 1 of 2 (rank 0) is gone", marks=pytest.mark.slow),
    ],
)
def test_what_ends_one_process_ends_all_with_one_line(tmp_path, name, code, words):
    codes, said, seconds = launch(tmp_path / "run", name)
    assert codes[0] == code
    assert codes[1] == (-9 if name == "killed" else code)
    assert words in said[0]
    assert "".join(said).count("error:") == 1
    assert said[1] == ""
    assert seconds < 60


def test_a_first_process_that_is_gone_ends_the_others_with_one_line(tmp_path):
    membership = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    leader = ranks.Leader(_hosted(ranks.find(membership)))
    peer = f"from harness import ranks, follow; follow.follow(ranks.Membership(1, 2, {leader.membership.variables!r}))"
    other = subprocess.Popen([sys.executable, "-c", peer], stderr=subprocess.PIPE, text=True)
    assert leader.assemble(60)
    leader.peers[1].close()  # what the end of this process would do
    leader.farewell(4)
    assert other.communicate(timeout=60)[1] == "error: process 1 of 2 (rank 0) is gone; what is complete is kept\n"
    assert other.returncode == 4


def _hosted(membership):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ranks.Membership(membership.rank, membership.world, {**membership.variables, "MASTER_PORT": str(port)})
