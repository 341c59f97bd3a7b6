"""What is shown of running stages, and of those that fail."""

import io

import pytest
from fake_plan import stage
from rich.console import Console

from harness import progress


@pytest.fixture
def lines():
    """Lines as without a terminal, and what they printed."""
    out = io.StringIO()
    stages = [stage(name) for name in "abc"]
    return progress.display(Console(file=out, width=60), stages, set(), 2), stages, out


def test_every_running_stage_is_named_once_a_minute(lines, monkeypatch):
    shown, (a, b, _), out = lines
    shown.begin(a)
    shown.begin(b)
    shown.advance(a, 1, 4)
    assert out.getvalue() == ""
    monkeypatch.setattr(progress, "_RUNNING_SECONDS", 0.0)
    shown.advance(b, 1, 2)
    assert out.getvalue().startswith("running: a 25 %, b 50 % (about ")


def test_failures_are_told_and_leave_the_count(lines):
    shown, (a, b, c), out = lines
    shown.begin(a)
    shown.fail(a, "ValueError: a bug", 1, True)
    shown.begin(a)
    shown.fail(a, "ValueError: a bug", 2, False)
    shown.leave(b)
    shown.begin(c)
    shown.finish(c, 1.0)
    told = out.getvalue().splitlines()
    assert told[0] == "FAILED: a, attempt 1: ValueError: a bug; it is tried again"
    assert told[1].endswith("it is given up")
    assert told[2] == "[1/1] c: 1.0 s"


def test_bars_show_every_running_stage_even_of_many():
    console = Console(file=io.StringIO(), force_terminal=True, width=800, height=10)
    stages = [stage(f"student{number}") for number in range(30)]
    bars = progress.display(console, stages, set(), 30)
    for each in stages:
        bars.begin(each)
        bars.advance(each, 1, 2)
    with console.capture() as capture:
        for part in bars._progress.get_renderables():
            console.print(part)
    shown = capture.get()
    assert all(f"student{number} " in shown for number in range(30))
    assert "and 24 more: student6 50 %" in shown
    with bars:
        bars.fail(stages[0], "it broke", 3, False)
    bars.finish(stages[1], 1.0)
    assert len(bars._progress.tasks) == 29  # the overall one, and 28
