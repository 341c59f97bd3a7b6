"""A training's records in trackers: what they are given, once each, and what is said where they cannot be had."""

import importlib.util
import json
from dataclasses import replace

import pytest

from harness.base import UserError
from students import tracking
from students.tracking import Log, Trackers


class Tracker:
    def __init__(self):
        self.finished = 0

    def finish(self):
        self.finished += 1


class Accelerator:
    """Remembers what accelerate is told."""

    def __init__(self):
        self.trackers, self.started, self.logged = [Tracker()], [], []

    def init_trackers(self, project, config, init_kwargs):
        self.started.append((project, config, init_kwargs))

    def log(self, values, step):
        self.logged.append((step, values))


def record(path, *steps):
    with path.open("a") as file:
        for step in steps:
            line = {"step": step, "loss": {"ce": step / 2, "fkl": None}, "lr": 0.1, "teacher_entropy": None}
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def trackers(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # so that what is put there is taken back
    facts = {"recipe": "ce", "training": {"lr": 0.1, "lora": None}}
    shared = tmp_path / "tracking"
    return Trackers(("wandb",), shared / "ce" / "seed0", shared, "mine", "ce/seed0", facts)


def test_every_step_is_handed_on_once_at_each_flush(tmp_path, trackers):
    records, accelerator = tmp_path / "dynamics.jsonl", Accelerator()
    log = Log(trackers, accelerator, records)
    log.open(0)
    record(records, 1, 2)
    log.flush()
    record(records, 3)
    log.flush()
    log.flush()
    log.close()
    assert accelerator.logged == [(step, {"loss/ce": step / 2, "lr": 0.1}) for step in (1, 2, 3)]
    project, config, options = accelerator.started[0]
    assert project == "mine"
    assert config == {"recipe": "ce", "training/lr": 0.1, "training/lora": "None"}
    assert options["wandb"]["name"] == "ce/seed0"
    assert options["wandb"]["dir"] == str(trackers.folder)
    assert accelerator.trackers[0].finished == 1


def test_a_resumed_training_goes_on_in_its_run(tmp_path, trackers):
    records = tmp_path / "dynamics.jsonl"
    first = Accelerator()
    log = Log(trackers, first, records)
    log.open(0)
    record(records, 1, 2, 3)
    log.flush()
    records.write_text("")
    record(records, 1, 2)  # the resume point was written after step 2; step 3 comes again
    second = Accelerator()
    log = Log(trackers, second, records)
    log.open(2)
    record(records, 3, 4)
    log.flush()
    assert [step for step, _ in second.logged] == [4]
    assert second.started[0][2]["wandb"]["id"] == first.started[0][2]["wandb"]["id"]


def test_a_training_from_nothing_starts_a_new_run(tmp_path, trackers):
    records = tmp_path / "dynamics.jsonl"
    ids = []
    for _ in range(2):
        accelerator = Accelerator()
        log = Log(trackers, accelerator, records)
        log.open(0)
        (trackers.folder / "of-this-run").touch()
        ids.append(accelerator.started[0][2]["wandb"]["id"])
    assert len(set(ids)) == 2
    Log(trackers, Accelerator(), records).open(0)
    assert not (trackers.folder / "of-this-run").exists()


def test_without_trackers_nothing_is_done(tmp_path):
    accelerator = Accelerator()
    log = Log(None, accelerator, tmp_path / "dynamics.jsonl")
    log.open(0)
    log.flush()
    log.close()
    assert not accelerator.started
    assert not accelerator.trackers[0].finished


def test_a_tracker_that_cannot_start_is_one_line(tmp_path, trackers):
    class Refusing(Accelerator):
        def init_trackers(self, project, config, init_kwargs):
            raise RuntimeError("api_key not configured\nUse wandb login")

    with pytest.raises(UserError, match=r"^--track wandb: a tracker could not start \(api_key not configured\)$"):
        Log(trackers, Refusing(), tmp_path / "dynamics.jsonl").open(0)


def test_names_are_checked(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "trackio" else object())
    assert tracking.check("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    with pytest.raises(UserError, match="pip install trackio"):
        tracking.check("trackio")
    with pytest.raises(UserError, match="Did you mean 'tensorboard'"):
        tracking.check("tensorbord")


def logged(trackers, folder):
    """Report two steps to the trackers themselves."""
    from accelerate import Accelerator as Real

    log = Log(trackers, Real(cpu=True, **trackers.arguments), folder / "dynamics.jsonl")
    log.open(0)
    record(folder / "dynamics.jsonl", 1, 2)
    log.flush()
    log.close()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_has_the_numbers(tmp_path, trackers):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mine = replace(trackers, names=("tensorboard",))
    logged(mine, tmp_path)
    events = EventAccumulator(str(mine.folder / "mine")).Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss/ce")] == [(1, 0.5), (2, 1.0)]


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_the_numbers(tmp_path, trackers):
    import sqlite3

    mine = replace(trackers, names=("trackio",))
    logged(mine, tmp_path)
    with sqlite3.connect(tmp_path / "mine.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for step, _ in rows] == [1, 2]


@pytest.mark.slow
def test_wandb_takes_them(tmp_path, trackers, monkeypatch):
    pytest.importorskip("wandb")
    from accelerate import Accelerator as Real

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    records = tmp_path / "dynamics.jsonl"
    accelerator = Real(cpu=True, **trackers.arguments)
    log = Log(trackers, accelerator, records)
    log.open(0)
    record(records, 1, 2)
    log.flush()
    run = accelerator.trackers[0].run
    assert (run.config["training/lr"], run.name) == (0.1, "ce/seed0")
    assert run.summary["loss/ce"] == 0.5  # the last step stays open until the run ends
    log.close()
    assert len(list(trackers.folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1
