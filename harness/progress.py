"""What a run shows while it works: a bar with an ETA on a terminal, one line per finished stage anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from harness.plan import Stage

#: Where there is no terminal, what is running is said this often, in seconds.
_RUNNING_SECONDS = 60.0
#: Lines of a terminal that are not for stages: the overall bar, the line that names the rest, and some air.
_OTHER_LINES = 4
#: Weight, in seconds, of the estimate made before anything was measured.
_PRIOR_SECONDS = 20.0


def duration(seconds: float) -> str:
    """Return a duration in the unit a person would use: ``42 s``, ``3.5 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


class Clock:
    """Estimates the time left from the stages' costs and the pace so far.

    Args:
        stages: the whole plan.
        done: ids of the stages that are complete already.
        workers: how many run at once.
    """

    def __init__(self, stages: Sequence[Stage], done: set[str], workers: int) -> None:
        self.total = sum(s.cost for s in stages if s.id not in done)
        self._workers = workers
        self._skipped = self._worked = 0.0
        self._partly: dict[str, float] = {}
        self._start = time.monotonic()

    @property
    def finished(self) -> float:
        """Cost of what is done, parts of running stages included."""
        return self._skipped + self.worked

    @property
    def worked(self) -> float:
        """Cost of what was done by working, not by finding it done."""
        return self._worked + sum(self._partly.values())

    def advance(self, stage: Stage, share: float) -> None:
        """``stage`` is done to ``share`` (0..1)."""
        self._partly[stage.id] = stage.cost * min(1.0, share)

    def drop(self, stage: Stage) -> None:
        """What was done of ``stage`` does not count any more."""
        self._partly.pop(stage.id, None)

    def leave(self, stage: Stage) -> None:
        """``stage`` will not be done."""
        self._partly.pop(stage.id, None)
        self.total -= stage.cost

    def finish(self, stage: Stage, worked: bool) -> None:
        """``stage`` is complete; ``worked`` is False when it was so already."""
        self._partly.pop(stage.id, None)
        if worked:
            self._worked += stage.cost
        else:
            self._skipped += stage.cost

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def left(self) -> float:
        """Estimated seconds to the end."""
        pace = (self.worked + _PRIOR_SECONDS * self._workers) / (self.elapsed + _PRIOR_SECONDS)
        return max(0.0, self.total - self.finished) / pace


def failure_line(stage: Stage, text: str, attempt: int, again: bool) -> str:
    """Return what is said of a stage that failed."""
    return f"FAILED: {stage.label}, attempt {attempt}: {text}; " + ("it is tried again" if again else "it is given up")


class Lines:
    """Prints one line per finished stage and, once a minute, a line with every stage that is running."""

    def __init__(self, console: Console, clock: Clock, count: int, done: int) -> None:
        self._console, self._clock, self._count, self._done = console, clock, count, done
        self._running: dict[str, tuple[Stage, float]] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def begin(self, stage: Stage) -> None:
        """Remember it; its line comes when it is finished."""
        self._running[stage.id] = (stage, 0.0)

    def advance(self, stage: Stage, done: int, total: int) -> None:
        """Move the estimate and, when a minute has passed, print what is running."""
        share = done / max(1, total)
        self._clock.advance(stage, share)
        self._running[stage.id] = (stage, share)
        if time.monotonic() - self._said >= _RUNNING_SECONDS:
            self._said = time.monotonic()
            self._say(f"running: {running(list(self._running.values()))} (about {duration(self._clock.left())} left)")

    def fail(self, stage: Stage, text: str, attempt: int, again: bool) -> None:
        """Print what went wrong."""
        self._running.pop(stage.id, None)
        (self._clock.drop if again else self._clock.leave)(stage)
        self._count -= not again
        self._say(failure_line(stage, text, attempt, again))

    def leave(self, stage: Stage) -> None:
        """One stage less to do."""
        self._clock.leave(stage)
        self._count -= 1

    def finish(self, stage: Stage, seconds: float | None) -> None:
        """Print the stage, how long it took and how long the rest will."""
        self._running.pop(stage.id, None)
        self._clock.finish(stage, seconds is not None)
        self._done += 1
        took = "unchanged" if seconds is None else f"{seconds:.1f} s"
        line = f"[{self._done:>{len(str(self._count))}}/{self._count}] {stage.label}: {took}"
        if self._done < self._count:
            line += f" (about {duration(self._clock.left())} left)"
        self._say(line)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def running(stages: Sequence[tuple[Stage, float]]) -> str:
    """Name stages with the share of each that is done."""
    return ", ".join(f"{stage.label} {100 * share:.0f} %" for stage, share in stages)


class _Remaining(ProgressColumn):
    """Time left, on the overall bar only."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        return Text(f"about {duration(self._clock.left())} left", style="cyan") if task.fields.get("overall") else Text("")


class _Fitting(Progress):
    """Bars for as many stages as the terminal has lines; a line of text names the others, so that every one is shown."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bars, and the line for the stages that have none."""
        tasks = [task for task in self.tasks if task.visible]
        if not tasks:  # also while rich is still making this object, which then knows no console
            yield self.make_tasks_table(tasks)
            return
        room = max(1, self.console.height - _OTHER_LINES)
        yield self.make_tasks_table(tasks[: room + 1])
        others = tasks[room + 1 :]
        if others:
            named = ", ".join(f"{task.description.strip()} {task.percentage:.0f} %" for task in others)
            yield Text(f"  and {len(others)} more: {named}")


class Bars:
    """An overall bar, and one for each stage that is running."""

    def __init__(self, console: Console, clock: Clock, count: int, done: int) -> None:
        self._clock, self._count, self._done = clock, count, done
        self._progress = _Fitting(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            _Remaining(clock),
            console=console,
            refresh_per_second=4,
        )
        self._overall = self._progress.add_task(self._title(), total=clock.total, overall=True)
        self._tasks: dict[str, TaskID] = {}

    def _title(self) -> str:
        return f"stage {self._done} of {self._count}"

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def _show(self) -> None:
        self._progress.update(self._overall, completed=self._clock.finished, description=self._title())

    def begin(self, stage: Stage) -> None:
        """Add the stage's bar; it pulses until the first progress."""
        self._drop(stage)
        self._tasks[stage.id] = self._progress.add_task(f"  {stage.label}", total=None)

    def _drop(self, stage: Stage) -> None:
        if stage.id in self._tasks:
            self._progress.remove_task(self._tasks.pop(stage.id))

    def fail(self, stage: Stage, text: str, attempt: int, again: bool) -> None:
        """Print what went wrong above the bars, and drop the stage's."""
        (self._clock.drop if again else self._clock.leave)(stage)
        self._count -= not again
        self._drop(stage)
        line = failure_line(stage, text, attempt, again)
        self._progress.console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._progress.update(self._overall, total=self._clock.total)
        self._show()

    def leave(self, stage: Stage) -> None:
        """One stage less to do."""
        self._clock.leave(stage)
        self._count -= 1
        self._progress.update(self._overall, total=self._clock.total)
        self._show()

    def advance(self, stage: Stage, done: int, total: int) -> None:
        """Move the stage's bar and the overall one."""
        self._clock.advance(stage, done / max(1, total))
        self._progress.update(self._tasks[stage.id], completed=done, total=max(1, total))
        self._show()

    def finish(self, stage: Stage, seconds: float | None) -> None:
        """Drop the stage's bar and move the overall one."""
        self._clock.finish(stage, seconds is not None)
        self._done += 1
        self._drop(stage)
        self._show()


def display(console: Console, stages: Sequence[Stage], done: set[str], workers: int) -> Lines | Bars:
    """Return what fits where the output goes; ``workers`` is how many stages run at once."""
    clock = Clock(stages, done, workers)
    return (Bars if console.is_terminal else Lines)(console, clock, len(stages), len(done))
