"""Carry out a plan: start jobs as soon as what they read is complete, try again what broke, go on without what cannot be done.

A stage that fails, or whose process is killed, is tried :data:`ATTEMPTS` times, from where it was if it can resume. Then it
fails alone: what reads from it is left out, everything else is done. Bad input ends the run at once, because it is the user's
to repair; a loss that is not finite would be so again and is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness import caching, plan, workers
from harness.base import UserError
from harness.executors import Executor

#: How often a stage is tried.
ATTEMPTS = 3


class StageError(Exception):
    """A stage failed for a reason that is not the input's. ``trace`` is the worker's traceback."""

    def __init__(self, stage: str, text: str, trace: str = "") -> None:
        super().__init__(f"stage {stage} failed: {text}")
        self.trace = trace


class DiskFull(StageError):
    """A stage, or the run itself, found no space left on the disk; the message says what to do."""

    def __init__(self, text: str, trace: str = "") -> None:
        Exception.__init__(self, text)
        self.trace = trace


@dataclass(frozen=True)
class Failure:
    """A stage that was given up.

    Attributes:
        stage: its id.
        text: the last error's one line.
        attempts: how often it was tried.
        lost: ids of the stages that were left out because they read from it, directly or not.
        trace: the last error's traceback; empty where the process was killed.
    """

    stage: str
    text: str
    attempts: int
    lost: tuple[str, ...] = ()
    trace: str = ""

    @property
    def sentence(self) -> str:
        """What happened, in one line."""
        return f"{self.text} ({self.attempts} attempt{'s' if self.attempts != 1 else ''})"

    @property
    def line(self) -> str:
        """The same with the stage's name and how much was left out, for the summary and the report."""
        without = len(self.lost)
        rest = f"; {without} stage{'s that read' if without != 1 else ' that reads'} from it left out" if without else ""
        return f"{self.stage.replace('/', ' ')}: {self.sentence}{rest}"


def error(failures: Sequence[Failure]) -> StageError:
    """Return the error that ends a command in which stages were given up; the traceback is the first one's."""
    first, *others = failures
    text = first.sentence + "".join(f"; stage {each.stage} failed: {each.sentence}" for each in others)
    return StageError(first.stage, text, first.trace)


class Watcher(Protocol):
    """Who is told what happens, to show it."""

    def begin(self, stage: plan.Stage) -> None:
        """``stage`` starts."""

    def advance(self, stage: plan.Stage, done: int, total: int) -> None:
        """``stage`` is ``done`` of ``total`` units of its work."""

    def finish(self, stage: plan.Stage, seconds: float | None) -> None:
        """``stage`` is complete; ``seconds`` is None when it turned out to be so already."""

    def fail(self, stage: plan.Stage, text: str, attempt: int, again: bool) -> None:
        """``stage`` failed at its n-th ``attempt``; it is tried ``again`` or given up."""

    def leave(self, stage: plan.Stage) -> None:
        """``stage`` is left out, because something that it reads was given up."""


class Execution:
    """One pass over a plan.

    Args:
        stages: the plan, each stage after what it reads.
        done: ids of the complete stages, from :func:`harness.plan.survey`.
        settings: of the run.
        executor: where the jobs run; whoever made it stops it.
        watcher: is told of progress.
        completed: called in this process after each stage, before the next jobs are given out.
        attempts: how often a stage is tried.
        bound: bytes that caches may hold; None for no bound.
    """

    def __init__(
        self,
        stages: Sequence[plan.Stage],
        done: set[str],
        settings: workers.Settings,
        executor: Executor,
        watcher: Watcher,
        completed: Callable[[plan.Stage], None],
        attempts: int = ATTEMPTS,
        bound: int | None = None,
    ) -> None:
        self._allowed = attempts
        self._keeper = caching.Keeper(settings.root, stages, bound)
        self._stages = stages
        self._by_id = {s.id: s for s in stages}
        self._producers = plan.Producers(stages)
        self._reads = {s.id: {each.id for each in self._producers.upstream(s)} for s in stages}
        self._done = set(done)
        self._settings = settings
        self._executor = executor
        self._watcher = watcher
        self._completed = completed
        self._given: dict[str, list[str]] = {}  # job -> ids of its stages that run or wait in their process
        self._attempts: dict[str, int] = {}
        self._failures: dict[str, Failure] = {}
        self._lost: set[str] = set()
        self._changed = True  # whether another job may be ready, or fit, since the last look

    def run(self) -> list[Failure]:
        """Do everything that is not done yet and can be done; return what was given up, in the order in which that happened.

        Raises:
            UserError: when a stage refuses its input, or needs more of caches at once than they may hold.
            DiskFull: when there is no space left on the disk.
        """
        self._executor.check([stage for stage in self._stages if stage.id not in self._done])
        while self._open() or self._given:  # to the last word of every job: a second pass may use the same executor
            if self._changed:
                self._dispatch()
            if self._given:
                for message in self._executor.listen():
                    self._handle(message)
        return list(self._failures.values())

    def _open(self) -> bool:
        return len(self._done) + len(self._failures) + len(self._lost) < len(self._stages)

    def _dispatch(self) -> None:
        """Start every job that can start, in the plan's order; a job that is too large for now is passed over."""
        self._changed = False
        while self._start_ready() and self._open():
            pass  # what was found unchanged may let others start
        if not self._given and self._open():
            waiting = [s.id for s in self._stages if s.id not in self._done | self._lost and s.id not in self._failures]
            raise RuntimeError(f"no stage can start; waiting: {', '.join(waiting)}")

    def _start_ready(self) -> bool:
        """Look at every ready job once; say whether one of them turned out to have nothing to do."""
        unchanged = False
        late = None
        for job in self._ready():
            if not self._executor.fits(job):
                continue
            todo, digests = self._unfinished(job)
            unchanged |= not todo
            if not todo:
                continue
            price = self._keeper.price(todo, self._done, self._busy())
            if price == 0:
                self._start(todo, digests)
            elif price is not None and late is None:
                late = todo, digests
        if late is not None and not unchanged and not self._given:  # nothing else can go on: a cache has to be made twice
            self._start(*late)
        return unchanged

    def _start(self, todo: list[plan.Stage], digests: dict[str, str]) -> None:
        """Make room for the caches of a job's stages and start them."""
        for cache in self._keeper.to_delete(todo, self._done, self._busy()) or ():
            caching.delete(cache)
            if cache.stage in self._keeper.needed(self._done):  # what still reads it waits until it is made again
                self._done.discard(cache.stage)
                self._changed = True
        lacking = self._keeper.lacks(todo)
        if lacking is not None:
            raise DiskFull(lacking)
        self._keeper.use(todo)
        self._given[todo[0].job] = [stage.id for stage in todo]
        self._executor.start(todo, digests)

    def _busy(self) -> set[str]:
        return {stage for given in self._given.values() for stage in given} - self._done

    def _ready(self) -> list[list[plan.Stage]]:
        """Return the jobs that nobody works on and whose stages have everything that they read."""
        jobs: dict[str, list[plan.Stage]] = {}
        for stage in self._stages:
            if not (stage.id in self._done or stage.id in self._lost or stage.id in self._failures or stage.job in self._given):
                jobs.setdefault(stage.job, []).append(stage)
        return [job for job in jobs.values() if all(self._reads[stage.id] <= self._done for stage in job)]

    def _unfinished(self, job: Sequence[plan.Stage]) -> tuple[list[plan.Stage], dict[str, str]]:
        """Return the stages of a ready job that have to be done, with their digests."""
        digests: dict[str, str] = {}
        todo: list[plan.Stage] = []
        for stage in job:
            digest = plan.stage_digest(self._settings.root, stage, self._producers)
            if plan.is_current(self._settings.root, stage, digest):  # what it reads came out as it was before
                self._finish(stage, None)
            else:
                digests[stage.id] = digest
                todo.append(stage)
        return todo, digests

    def _handle(self, message: workers.Message) -> None:
        self._changed |= message.kind != "progress"
        if message.kind == "ended":
            self._given.pop(message.job)
            return
        if message.kind == "died" and not message.stage:  # before it began anything: the first stage's attempt is lost
            stage = self._by_id[next(s for s in self._given[message.job] if s not in self._done)]
            self._attempts[stage.id] = self._attempts.get(stage.id, 0) + 1
        else:
            stage = self._by_id[message.stage]
        if message.kind == "begin":
            self._attempts[stage.id] = self._attempts.get(stage.id, 0) + 1
            self._watcher.begin(stage)
        elif message.kind == "progress":
            self._watcher.advance(stage, message.done, message.total)
        elif message.kind == "done":
            self._finish(stage, message.seconds)
        elif message.kind == "refused":
            raise UserError(f"{message.text} (stage {stage.id})")
        elif message.kind == "full":
            raise DiskFull(message.text, message.trace)
        elif message.kind in ("failed", "died"):
            self._broke(stage, message)
        else:
            raise RuntimeError(f"unknown message {message.kind!r} from stage {message.stage}")

    def _finish(self, stage: plan.Stage, seconds: float | None) -> None:
        self._done.add(stage.id)
        self._keeper.made(stage)
        self._keeper.check(self._done)
        self._completed(stage)
        self._watcher.finish(stage, seconds)

    def _broke(self, stage: plan.Stage, message: workers.Message) -> None:
        """Try a stage again, or give it up with everything that reads from it."""
        attempt = self._attempts[stage.id]
        again = attempt < self._allowed and not message.repeats
        self._watcher.fail(stage, message.text, attempt, again)
        if again:
            return
        without = {stage.id}
        for each in self._stages:  # each stage is after what it reads, so one pass finds all of them
            if self._reads[each.id] & without and each.id not in self._lost:
                without.add(each.id)
                self._watcher.leave(each)
        lost = tuple(each.id for each in self._stages if each.id in without - {stage.id})
        self._lost |= set(lost)
        self._failures[stage.id] = Failure(stage.id, message.text, attempt, lost, message.trace)


def broken(failures: Sequence[Failure]) -> set[str]:
    """Return the ids of all stages that were given up or left out."""
    return {each for failure in failures for each in (failure.stage, *failure.lost)}
