"""Carry out a plan: give jobs to workers as soon as what they read is complete, and stop at the first failure."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Protocol

from harness import caching, disk, plan, workers
from harness.base import UserError


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


class Watcher(Protocol):
    """Who is told what happens, to show it."""

    def begin(self, stage: plan.Stage) -> None:
        """``stage`` starts."""

    def advance(self, stage: plan.Stage, done: int, total: int) -> None:
        """``stage`` is ``done`` of ``total`` units of its work."""

    def finish(self, stage: plan.Stage, seconds: float | None) -> None:
        """``stage`` is complete; ``seconds`` is None when it turned out to be so already."""


class Execution:
    """One pass over a plan.

    Args:
        stages: the plan, each stage after what it reads.
        done: ids of the complete stages, from :func:`harness.plan.survey`.
        settings: handed to the workers.
        count: how many workers to start at most.
        watcher: is told of progress.
        completed: called in this process after each stage, before the next jobs are given out.
        bound: bytes that caches may hold; None for no bound.
    """

    def __init__(
        self,
        stages: Sequence[plan.Stage],
        done: set[str],
        settings: workers.Settings,
        count: int,
        watcher: Watcher,
        completed: Callable[[plan.Stage], None],
        bound: int | None = None,
    ) -> None:
        self._stages = stages
        self._by_id = {s.id: s for s in stages}
        self._done = set(done)
        self._settings = settings
        self._count = count
        self._watcher = watcher
        self._completed = completed
        self._keeper = caching.Keeper(settings.root, stages, bound)
        self._given: set[str] = set()
        self._workers: list[workers.Worker] = []
        self._idle: list[workers.Worker] = []

    def run(self) -> None:
        """Do everything that is not done yet.

        Raises:
            UserError: when a stage refuses its input, or needs more of caches at once than they may hold.
            StageError: when a stage, or a worker, fails; a :class:`DiskFull` when there is no space left on the disk.
        """
        try:
            while len(self._done) < len(self._stages):
                self._dispatch()
                if len(self._done) < len(self._stages):
                    self._listen()
        finally:
            workers.stop(self._workers)

    def _dispatch(self) -> None:
        """Hand out every job that can start, as long as there are workers for it."""
        while (job := self._next_job()) is not None:
            digests: dict[str, str] = {}
            todo: list[plan.Stage] = []
            for stage in job:
                digest = plan.stage_digest(self._settings.root, stage, self._stages)
                if plan.is_current(self._settings.root, stage, digest):  # what it reads came out as it was before
                    self._finish(stage, None)
                else:
                    digests[stage.id] = digest
                    todo.append(stage)
            if not todo:
                continue
            self._make_room(todo)
            self._given.update(digests)
            self._take_worker().send(todo, digests)

    def _make_room(self, job: list[plan.Stage]) -> None:
        """Delete the caches that are in the way of ``job``; what still reads one waits until it is made again."""
        for cache in self._keeper.to_delete(job, self._done, self._busy()) or ():
            caching.delete(cache)
            if cache.stage in self._keeper.needed(self._done):
                self._done.discard(cache.stage)
                self._given.discard(cache.stage)
        lacking = self._keeper.lacks(job)
        if lacking is not None:
            raise DiskFull(lacking)
        self._keeper.use(job)

    def _busy(self) -> set[str]:
        return self._given - self._done

    def _take_worker(self) -> workers.Worker:
        if not self._idle:
            worker = workers.start(len(self._workers), self._settings)
            self._workers.append(worker)
            return worker
        return self._idle.pop(0)

    def _next_job(self) -> list[plan.Stage] | None:
        """Return the stages to do of the first job that can start now."""
        if not self._idle and len(self._workers) >= self._count:
            return None
        seen: set[str] = set()
        late = None
        for stage in self._stages:
            if stage.id in self._done or stage.id in self._given or stage.job in seen:
                continue
            seen.add(stage.job)
            job = [s for s in self._stages if s.job == stage.job and s.id not in self._done]
            if all(u.id in self._done for s in job for u in plan.upstream(s, self._stages)):
                price = self._keeper.price(job, self._done, self._busy())
                if price == 0:
                    return job
                late = job if late is None and price is not None else late
        if self._busy():
            return None
        if late is None and seen:
            raise RuntimeError(f"no stage can start; waiting: {', '.join(sorted(seen))}")
        return late

    def _listen(self) -> None:
        """Wait for news from the workers and act on it."""
        for pipe in wait([w.pipe for w in self._workers]):
            worker = next(w for w in self._workers if w.pipe is pipe)
            try:
                message: workers.Message = worker.pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                worker.process.join()
                if worker.process.exitcode == -signal.SIGBUS and disk.is_short(self._settings.root):
                    # a memory map that met a full disk is no error in the worker: the system kills it
                    raise DiskFull(disk.line(self._settings.root, f"stage {worker.stage}")) from error
                log = self._settings.root / "logs" / f"worker-{worker.number}.log"
                text = f"its worker died (exit code {worker.process.exitcode}; out of memory?), see {log}"
                raise StageError(worker.stage or "(start of a worker)", text) from error
            self._handle(worker, message)

    def _handle(self, worker: workers.Worker, message: workers.Message) -> None:
        if message.kind == "idle":
            worker.stage = ""
            self._idle.append(worker)
            return
        stage = self._by_id[message.stage]
        if message.kind == "begin":
            worker.stage = stage.id
            self._watcher.begin(stage)
        elif message.kind == "progress":
            self._watcher.advance(stage, message.done, message.total)
        elif message.kind == "done":
            self._finish(stage, message.seconds)
        elif message.kind == "refused":
            raise UserError(f"{message.text} (stage {stage.id})")
        elif message.kind == "full":
            raise DiskFull(message.text, message.trace)
        else:
            raise StageError(stage.id, message.text, message.trace)

    def _finish(self, stage: plan.Stage, seconds: float | None) -> None:
        self._done.add(stage.id)
        self._keeper.made(stage)
        self._keeper.check(self._done)
        self._completed(stage)
        self._watcher.finish(stage, seconds)
