"""A way to carry out a tiny plan of fake stages."""

import os

import pytest
from fake_plan import Log
from test_cli import COMMON, HOME, call

from harness import plan, store
from harness.base import write_json
from harness.execute import Execution, error
from harness.executors.local import Local
from harness.resources import Machine
from harness.workers import Settings

TINY = """
extends: smoke
name: tiny
title: A tiny run for the tests
data: { images: 30 }
training: { steps: 4, rows: 4, betas_every: 2, flush_every: 2 }
evaluation: { limit: 3 }
recipes: [ce, ce+fkl@fixed, ce+fkl@instance]
"""

NO_NETWORK = """
import socket

def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        raise OSError(f"the network was asked for: {address}")
    return original(self, address, *rest)

original, socket.socket.connect = socket.socket.connect, refuse
"""


@pytest.fixture
def carry_out(tmp_path):
    """Carry out stages in ``tmp_path / "run"`` and return what was worked on."""
    root = tmp_path / "run"

    def do(stages, count=1, executor=Local, attempts=3, raises=True, bound=None):
        log = Log()
        with store.locked(root, "fake"):
            write_json(root / "manifest.json", {"preset": {"name": "fake"}})
            done = plan.survey(root, stages)
            settings = Settings(root, "cpu", 1)
            running = executor(settings, count, Machine(cpus=2, gpus=(), memory_gb=4.0, whole_memory_gb=4.0))
            try:
                log.failures = Execution(stages, done, settings, running, log, lambda _: None, attempts, bound).run()
            finally:
                running.stop()
        if raises and log.failures:
            raise error(log.failures)
        return log

    do.root = root
    return do


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A preset that does everything the default does, with the shipped models, in seconds."""
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """A working folder that refuses the network, and that holds a package which workers must not take for ours."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "students").mkdir()
    (folder / "students" / "__init__.py").write_text("raise ImportError('the wrong package')")
    (folder / "cut").mkdir()
    (folder / "cut" / "sitecustomize.py").write_text(NO_NETWORK)
    return folder


@pytest.fixture(scope="session")
def finished(work, tiny):
    """One finished run of two students on two benchmarks, made once for all who compare with it or look at it."""
    cut = f"{work / 'cut'}{os.pathsep}{HOME}"
    done = call("--preset", tiny, *COMMON, "--out", "run", cwd=work, PYTHONPATH=cut)
    assert done.returncode == 0, done.stderr
    return work / "run"
