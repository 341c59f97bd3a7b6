"""Worker processes of this machine: as many at once as its cores, memory and GPUs allow.

A worker is spawned, not forked, with its thread counts and its GPUs in the environment before anything heavy is imported. It
ignores Ctrl-C (the parent decides) and a watcher thread ends it the moment the parent dies, so that no orphan writes into the
run folder. It is kept for the next job, with what stages left in its memory; after an error it is replaced, because what an
error leaves behind (a broken CUDA context, memory held by a traceback) is nobody's to trust. What libraries print goes to
``logs/worker-N.log``.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from harness import disk, store, workers
from harness.base import end_with_parent
from harness.plan import Stage
from harness.resources import Machine, Resources, machine, together
from harness.workers import Message, Settings

#: How long a worker that was asked to end may take to tidy up before it is killed.
_PATIENCE_SECONDS = 5.0
#: How long to wait for news at a time.
_LISTEN_SECONDS = 1.0


@dataclass
class Worker:
    """The parent's end of one worker: what it works on, on which GPUs, and what that takes."""

    number: int
    process: Any
    pipe: Connection
    devices: tuple[str, ...]
    job: str = ""
    stage: str = ""
    needs: Resources = field(default_factory=Resources)

    @property
    def share(self) -> float:
        """What its job takes of each of its GPUs."""
        return min(1.0, self.needs.gpus)


class Local:
    """Runs jobs in worker processes.

    Args:
        settings: handed to the workers.
        bound: how many to run at once at most; None: as many as the machine allows.
        there: the machine; by default this one.
    """

    def __init__(self, settings: Settings, bound: int | None, there: Machine | None = None) -> None:
        self._settings = settings
        self._bound = bound
        self._machine = machine(settings.device) if there is None else there
        self._busy: list[Worker] = []
        self._idle: list[Worker] = []
        self._numbers = itertools.count()

    @property
    def width(self) -> int:
        """About how many jobs run at once."""
        needs = Resources(cpus=self._settings.threads, gpus=1, memory_gb=1.0)
        return self._machine.width(needs, self._settings.device, self._bound)

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise a ``UserError`` for a stage that takes more than this machine has."""
        for kind, needs in dict.fromkeys((stage.kind, stage.resources) for stage in stages):
            self._machine.check(kind, needs, self._settings.device)

    def fits(self, job: Sequence[Stage]) -> bool:
        """Say whether ``job`` can be started beside what runs; alone, a job always can."""
        if not self._busy:
            return True
        if self._bound is not None and len(self._busy) >= self._bound:
            return False
        needs = self._needs(job)
        running = [worker.needs for worker in self._busy]
        return (
            needs.cpus + sum(each.cpus for each in running) <= self._machine.cpus
            and needs.memory_gb + sum(each.memory_gb for each in running) <= self._machine.memory_gb
            and self._devices(needs) is not None
        )

    def start(self, job: Sequence[Stage], digests: Mapping[str, str]) -> None:
        """Give ``job`` to a worker, an idle one if one has the right GPUs."""
        needs = self._needs(job)
        worker = self._take(needs)
        worker.needs, worker.job, worker.stage = needs, job[0].job, ""
        self._busy.append(worker)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died idle, which listen() will report
            worker.pipe.send((list(job), dict(digests)))

    def listen(self) -> list[Message]:
        """Wait for news of the workers, at most a second."""
        found: list[Message] = []
        for pipe in wait([worker.pipe for worker in self._busy], _LISTEN_SECONDS):
            worker = next(each for each in self._busy if each.pipe is pipe)
            try:
                message: Message = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                found += self._died(worker)
                continue
            if message.kind in ("begin", "done"):  # between two stages it works on none
                worker.stage = message.stage if message.kind == "begin" else ""
            found.append(message)
            if message.kind == "ended":
                self._busy.remove(worker)
                self._idle.append(worker)
            elif message.kind in ("failed", "refused", "full"):
                found.append(self._retire(worker))
        return found

    def stop(self) -> None:
        """End all workers, busy or not, and wait until they are gone."""
        end([*self._busy, *self._idle])
        self._busy, self._idle = [], []

    def _needs(self, job: Sequence[Stage]) -> Resources:
        needs = together([stage.resources for stage in job], self._settings.device)
        return needs.model_copy(update={"cpus": min(needs.cpus, self._machine.cpus)})

    def _devices(self, needs: Resources) -> tuple[str, ...] | None:
        """Return free GPUs for ``needs``, the fullest first that still have room; None where there are not enough."""
        share, count = min(1.0, needs.gpus), int(-(-needs.gpus // 1))
        taken = {name: sum(w.share for w in self._busy if name in w.devices) for name in self._machine.gpus}
        free = sorted((name for name in taken if taken[name] + share <= 1.0 + 1e-9), key=lambda name: -taken[name])
        return tuple(free[:count]) if len(free) >= count else None

    def _take(self, needs: Resources) -> Worker:
        """Return an idle worker that has the right GPUs, or a new one."""
        devices = self._devices(needs)
        assert devices is not None, "check() has compared the plan with the machine"
        for worker in self._idle:
            if len(worker.devices) == len(devices) and self._free(worker, min(1.0, needs.gpus)):
                self._idle.remove(worker)
                return worker
        others = [worker for worker in self._idle if set(worker.devices) & set(devices)]  # they would keep memory of these GPUs
        self._idle = [worker for worker in self._idle if worker not in others]
        end(others)
        return spawn(next(self._numbers), self._settings, devices)

    def _free(self, idle: Worker, share: float) -> bool:
        taken = [sum(w.share for w in self._busy if name in w.devices) for name in idle.devices]
        return all(each + share <= 1.0 + 1e-9 for each in taken)

    def _died(self, worker: Worker) -> list[Message]:
        worker.process.join()
        if worker.process.exitcode == -signal.SIGBUS and disk.is_short(self._settings.root):
            # a memory map that met a full disk is no error in the worker: the system kills it
            text = disk.line(self._settings.root, f"stage {worker.stage}")
            return [Message("full", worker.stage, text=text, job=worker.job), self._retire(worker)]
        log = self._settings.root / "logs" / f"worker-{worker.number}.log"
        text = f"its worker died (exit code {worker.process.exitcode}; out of memory?), see {log}"
        return [Message("died", worker.stage, text=text, job=worker.job), self._retire(worker)]

    def _retire(self, worker: Worker) -> Message:
        self._busy.remove(worker)
        end([worker])
        return Message("ended", job=worker.job)


def spawn(number: int, settings: Settings, devices: tuple[str, ...]) -> Worker:
    """Start worker ``number`` on some GPUs."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(number, settings, devices, theirs), name=f"worker-{number}", daemon=False)
    process.start()
    theirs.close()  # so that its death closes the pipe
    return Worker(number, process, ours, devices)


def end(ended: Sequence[Worker]) -> None:
    """End workers, busy or not, and wait until they are gone; what they were writing stays partial."""
    for worker in ended:
        worker.process.terminate()
    for worker in ended:
        worker.process.join(_PATIENCE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


# ---- in the worker ---------------------------------------------------------------------------------------------------------


def _main(number: int, settings: Settings, devices: tuple[str, ...], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, workers.end)
    end_with_parent()
    workers.set_threads(settings.threads)
    if settings.device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    workers.network(settings.online)
    with store.worker_lock(settings.root, number):
        workers.redirect(settings.root / "logs" / f"worker-{number}.log")
        _serve(settings, pipe)


def _serve(settings: Settings, pipe: Connection) -> None:
    memory: dict[str, Any] = {}
    while True:
        try:
            job, digests = pipe.recv()
        except EOFError:  # the parent closed the pipe: no more work
            return
        if workers.work(job, digests, settings, memory, pipe.send):
            pipe.send(Message("ended", job=job[0].job))
