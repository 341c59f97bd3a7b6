"""``--launch``: the shipped configurations against accelerate's own loader, and what is said of others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from test_cli import COMMON

from harness import launch
from harness.base import UserError

SHIPPED = sorted(path.stem for path in launch.FOLDER.glob("*.yaml"))
HERE = Path(__file__).parents[2]


@pytest.fixture
def as_launched(monkeypatch):
    """Put a configuration's environment into this process, as accelerate's launcher would into the processes it starts."""
    from accelerate.commands import launch as accelerate
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    def put(name):
        given = ["--config_file", str(launch.configuration(name)), "-m", "harness.run"]
        arguments, defaults, _ = accelerate._validate_launch_command(accelerate.launch_command_parser().parse_args(given))
        if arguments.use_deepspeed:
            arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
            environment = prepare_deepspeed_cmd_env(arguments)[1]
        else:
            environment = prepare_multi_gpu_env(arguments)
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        return arguments

    return put


def test_there_is_a_configuration_for_each_engine():
    assert SHIPPED == ["cpu", "ddp", "deepspeed-zero2", "deepspeed-zero3", "fsdp2"]


@pytest.mark.parametrize("name", SHIPPED)
def test_accelerate_starts_one_process_per_device(as_launched, name):
    arguments = as_launched(name)
    assert sum([arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed]) == 1  # else it would start one process
    assert arguments.num_processes == (2 if name == "cpu" else 8)
    assert arguments.main_process_port > 0


def test_fsdp2_is_what_accelerate_understands(as_launched):
    from accelerate.utils import FullyShardedDataParallelPlugin

    as_launched("fsdp2")
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is False
    assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_what_accelerate_understands(as_launched, stage):
    from accelerate.utils import DeepSpeedPlugin

    as_launched(f"deepspeed-zero{stage}")
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    assert plugin.gradient_accumulation_steps == 1
    assert not plugin.zero3_init_flag


@pytest.mark.parametrize(
    ("was", "put", "words"),
    [
        ("fsdp_version: 2", "fsdp_versoin: 2", "unknown field fsdp_config.fsdp_versoin. Did you mean 'fsdp_version'?"),
        ("num_machines: 1", "num_machine: 1", "num_machine"),
        ("distributed_type: FSDP", "distributed_type: FSPD", "FSPD"),
        ("distributed_type: FSDP", "", "distributed_type"),
    ],
)
def test_a_field_that_accelerate_does_not_know_is_named(tmp_path, was, put, words):
    text = (launch.FOLDER / "fsdp2.yaml").read_text()
    assert was in text
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(was, put))
    with pytest.raises(UserError) as caught:
        launch.check(file)
    assert str(file) in str(caught.value)
    assert words in str(caught.value)


def test_devices_that_are_not_there_or_not_meant_are_refused():
    ddp, cpu = (launch.check(launch.configuration(name)) for name in ("ddp", "cpu"))
    launch.check_devices("ddp", ddp, "auto", 8)
    launch.check_devices("cpu", cpu, "auto", 0)
    launch.check_devices("cpu", cpu, "cpu", 2)
    with pytest.raises(UserError, match=r"starts 8 processes on this machine, .* torch sees 2; copy the configuration"):
        launch.check_devices("ddp", ddp, "auto", 2)
    with pytest.raises(UserError, match="add --device cpu"):
        launch.check_devices("cpu", cpu, "auto", 2)


def test_an_unknown_configuration_names_the_shipped_ones():
    with pytest.raises(UserError, match=r"Did you mean 'fsdp2'\? Known: cpu, ddp"):
        launch.configuration("fsdp")


# ---- the whole way ---------------------------------------------------------------------------------------------------------


def _run(tiny, out, *more, starter=(sys.executable,)):
    """The command in a process of its own, with the shipped launcher where ``--launch`` says so, or under another."""
    command = [*starter, "-m", "harness.run", "--preset", str(tiny), "--students", "ce+fkl@instance",
               "--tasks", "pope", "--out", str(out), *more]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(finished, tiny, tmp_path):
    alone, two = finished, tmp_path / "two"
    done = _run(tiny, two, *COMMON, "--launch", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    stages = sorted(path.relative_to(alone) for path in (alone / "stages").rglob("*.json"))
    assert stages == sorted(path.relative_to(two) for path in (two / "stages").rglob("*.json"))
    late = ("collect.json", "report.json")
    before = [s for s in stages if s.parts[1] not in late and not any("ce" in part.split("+") for part in s.parts)]
    assert len(before) >= 7  # what reads no student
    for path in before:  # bit for bit: the data, the signal, and what given models say and score
        outputs = [json.loads((out / path).read_text())["outputs"] for out in (alone, two)]
        contents = [{name: file["sha256"] for name, file in found.items()} for found in outputs]
        assert contents[0] == contents[1], path
    student = "students/ce+fkl@instance/seed0"
    digests = [json.loads((out / "stages/student/ce+fkl@instance/seed0.json").read_text())["digest"] for out in (alone, two)]
    assert digests[0] == digests[1]
    steps = [[json.loads(line) for line in (out / student / "dynamics.jsonl").read_text().splitlines()] for out in (alone, two)]
    for one, other in zip(*steps, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["weight"] == pytest.approx(other["weight"], abs=1e-5)
        assert one["samples"] == other["samples"]
    weights = [load_file(out / student / "student/model.safetensors") for out in (alone, two)]
    # Muon computes in bfloat16, where the rounding of a sum over processes grows
    assert all(np.allclose(weights[0][name], weights[1][name], atol=1e-3) for name in weights[0])
    frames = [pd.read_parquet(out / "scores.parquet") for out in (alone, two)]
    pd.testing.assert_frame_equal(*frames)
    again = _run(tiny, two, *COMMON)  # and without a launcher there is nothing left to do
    assert "nothing to do" in again.stdout


@pytest.mark.slow
def test_accelerates_own_command_starts_the_same_processes(tiny, tmp_path):
    """``accelerate-launch -m harness.run``; its exit code after an error, and the report under it, are the launcher's."""
    starter = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch.configuration("cpu"))]
    done = _run(tiny, tmp_path / "run", "--students", "ce", starter=starter)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nreport: ") == 1  # one of them speaks
    assert (tmp_path / "run" / "logs" / "worker-1.log").is_file()
    assert len(pd.read_parquet(tmp_path / "run" / "scores.parquet")) > 0
    refused = _run(tiny, tmp_path / "other", "--students", "ce+fkk", starter=starter)
    assert refused.returncode == 1
    assert sum(line.startswith("error: ") for line in refused.stderr.splitlines()) == 1
    assert "fkl" in refused.stderr
    assert not (tmp_path / "other").exists()
