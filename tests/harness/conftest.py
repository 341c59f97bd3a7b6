"""A way to carry out a tiny plan of fake stages."""

import pytest
from fake_plan import Log

from harness import plan, store
from harness.base import write_json
from harness.execute import Execution
from harness.workers import Settings


@pytest.fixture
def carry_out(tmp_path):
    """Carry out stages in ``tmp_path / "run"`` and return what was worked on."""
    root = tmp_path / "run"

    def do(stages, count=1):
        log = Log()
        with store.locked(root, "fake"):
            write_json(root / "manifest.json", {"preset": {"name": "fake"}})
            done = plan.survey(root, stages)
            Execution(stages, done, Settings(root, "cpu", 1), count, log, lambda _: None).run()
        return log

    do.root = root
    return do
