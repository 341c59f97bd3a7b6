"""A way to carry out a tiny plan of fake stages."""

import pytest
from fake_plan import Log

from harness import plan, store
from harness.base import write_json
from harness.execute import Execution
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


@pytest.fixture
def carry_out(tmp_path):
    """Carry out stages in ``tmp_path / "run"`` and return what was worked on."""
    root = tmp_path / "run"

    def do(stages, count=1, bound=None):
        log = Log()
        with store.locked(root, "fake"):
            write_json(root / "manifest.json", {"preset": {"name": "fake"}})
            done = plan.survey(root, stages)
            Execution(stages, done, Settings(root, "cpu", 1), count, log, lambda _: None, bound).run()
        return log

    do.root = root
    return do


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A preset that does everything the default does, with the shipped models, in seconds."""
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(TINY)
    return path
