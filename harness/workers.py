"""Worker processes: started once, given jobs over a pipe, gone when the parent is.

A worker is spawned, not forked, with its thread counts in the environment before anything heavy is imported. It ignores
Ctrl-C (the parent decides) and a watcher thread ends it the moment the parent dies, so that no orphan writes into the run
folder. What libraries print goes to ``logs/worker-N.log``.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NoReturn

from harness import disk, plan, store
from harness.base import OFFLINE, UserError, end_with_parent, offline

_PROGRESS_SECONDS = 0.2
#: How long a worker that was asked to end may take to tidy up before it is killed.
_PATIENCE_SECONDS = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Settings:
    """What every stage may need and no digest covers.

    Attributes:
        root: the run folder.
        device: where models run.
        threads: of torch, and of whatever decodes images.
        online: data sets may be fetched from the hub.
        skip_unreadable: how many images of a corpus may be unreadable; their rows are left out, counted and named.
    """

    root: Path
    device: Literal["cpu", "cuda"]
    threads: int
    online: bool = False
    skip_unreadable: int = 0


@dataclass
class Context:
    """What a stage function is given.

    Attributes:
        stage: its description.
        settings: of the run.
        memory: what stages keep for later ones in the same worker; a stage must give the same result with it empty.
        progress: call with (done, total) as often as you like.
    """

    stage: plan.Stage
    settings: Settings
    memory: dict[str, Any]
    progress: Callable[[int, int], None]

    @property
    def root(self) -> Path:
        """The run folder."""
        return self.settings.root

    @property
    def config(self) -> Mapping[str, Any]:
        """The stage's configuration."""
        return self.stage.config

    def out(self, target: str) -> Path:
        """Where to write ``target``, one of the stage's targets, until it is complete."""
        if target not in self.stage.targets:
            raise RuntimeError(f"stage {self.stage.id} has no target {target}")
        return store.partial(self.root, target)

    def place(self, name: str) -> Path:
        """Where the input called ``name`` lies."""
        return self.root / self.stage.places[name]  # an absolute place replaces the root

    def remember(self, kind: str, key: str, make: Callable[[], Any]) -> Any:
        """Return ``make()``, kept in memory until another ``key`` of the same ``kind`` is asked for."""
        kept = self.memory.get(kind)
        if kept is None or kept[0] != key:
            self.memory.pop(kind, None)  # dropped first: two data sets or models at once may not fit
            kept = self.memory[kind] = (key, make())
        return kept[1]


@dataclass(frozen=True)
class Message:
    """What a worker tells the parent.

    Attributes:
        kind: ``begin``, ``progress``, ``done``, ``failed`` (a bug), ``refused`` (bad input), ``full`` (no space left on the
            disk) or ``idle`` (ready for a job).
        stage: id of the stage concerned.
        done: units of work done, of ``total``.
        text: the error's one line.
        trace: its traceback.
    """

    kind: str
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    text: str = ""
    trace: str = ""


@dataclass
class Worker:
    """The parent's end of one worker."""

    number: int
    process: Any
    pipe: Connection
    stage: str = ""

    def send(self, job: Sequence[plan.Stage], digests: Mapping[str, str]) -> None:
        """Give it a job; it answers with messages and, in the end, ``idle``."""
        self.pipe.send((list(job), dict(digests)))


def start(number: int, settings: Settings) -> Worker:
    """Start worker ``number``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(number, settings, theirs), name=f"worker-{number}", daemon=False)
    process.start()
    theirs.close()  # so that its death closes the pipe
    return Worker(number, process, ours)


def stop(workers: Sequence[Worker]) -> None:
    """End workers, busy or not, and wait until they are gone; what they were writing stays partial."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_PATIENCE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


# ---- in the worker ---------------------------------------------------------------------------------------------------------


def _main(number: int, settings: Settings, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)  # an orderly end frees the semaphores that libraries hold
    end_with_parent()
    os.environ.update({name: str(settings.threads) for name in _THREAD_VARIABLES})
    network(settings.online)
    with store.worker_lock(settings.root, number):
        _redirect(settings.root / "logs" / f"worker-{number}.log")
        _serve(settings, pipe)


def network(online: bool) -> None:
    """Keep this process off the network, or let it reach the hub without telemetry and bars; a user's own switch stays."""
    if online:
        os.environ.update({name: value for name, value in OFFLINE.items() if not name.endswith("_OFFLINE")})
    else:
        offline()


def _end(number: int, *_: object) -> NoReturn:
    raise SystemExit(128 + number)


def _redirect(log: Path) -> None:
    """Send this process's output, also that of native libraries, to ``log``: it would tear the progress bar apart."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(file=sys.__stderr__ or sys.stderr)


def _serve(settings: Settings, pipe: Connection) -> None:
    memory: dict[str, Any] = {}
    while True:
        try:
            job, digests = pipe.recv()
        except EOFError:  # the parent closed the pipe: no more work
            return
        for stage in job:
            if not _attempt(stage, digests[stage.id], settings, memory, pipe):
                break
        pipe.send(Message("idle"))


def _attempt(stage: plan.Stage, digest: str, settings: Settings, memory: dict[str, Any], pipe: Connection) -> bool:
    """Do one stage and commit it; report a failure instead of raising it."""
    pipe.send(Message("begin", stage.id))
    started = time.monotonic()
    try:
        module, _, name = stage.run.partition(":")
        function = getattr(importlib.import_module(module), name)
        store.begin(settings.root, stage.id, digest, stage.targets, stage.resumes)
        function(Context(stage, settings, memory, _reporter(stage.id, pipe)))
        seconds = time.monotonic() - started
        store.commit(settings.root, stage.id, digest, stage.version, stage.targets, seconds, stage.cache)
    except Exception as error:  # noqa: BLE001 - it crosses to the parent, which stops the run with it
        pipe.send(_failure(error, stage, settings.root))
        return False
    pipe.send(Message("done", stage.id, seconds=seconds))
    return True


def _failure(error: Exception, stage: plan.Stage, root: Path) -> Message:
    """Return what the parent is told of a stage's ``error``; call while it is handled."""
    trace = traceback.format_exc()
    if disk.is_full(error):  # also where something took it for bad input: a file that cannot be read, for want of room
        if not stage.resumes:  # nobody can go on from it, and others need the room
            store.clear(root, stage.targets)
        return Message("full", stage.id, text=disk.line(root, f"stage {stage.id}"), trace=trace)
    if isinstance(error, UserError):
        return Message("refused", stage.id, text=str(error), trace=trace)
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return Message("failed", stage.id, text=line, trace=trace)


def _reporter(stage: str, pipe: Connection) -> Callable[[int, int], None]:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS:
            last = now
            pipe.send(Message("progress", stage, done=done, total=total))

    return report
