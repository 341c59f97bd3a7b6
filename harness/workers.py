"""What happens in a process that works on stages, whoever started it (harness/executors/): what a stage function is given,
what is told of it, and how its errors are reported.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from harness import disk, plan, store
from harness.base import OFFLINE, UserError, offline
from harness.ranks import Membership, taking_part

_PROGRESS_SECONDS = 0.2
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
        ranks: this process's place among those of a launch; None without a launcher.
        track: the trackers that trainings report to, of :data:`students.tracking.NAMES`.
    """

    root: Path
    device: Literal["cpu", "cuda"]
    threads: int
    online: bool = False
    skip_unreadable: int = 0
    ranks: Membership | None = None
    track: tuple[str, ...] = ()


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
    """What comes back from where a job runs.

    Attributes:
        kind: ``begin``, ``progress``, ``done``, ``failed`` (an error that is not the input's), ``refused`` (bad input),
            ``full`` (no space left on the disk), ``died`` (its process is gone without a
            word), or ``ended`` (the job is over; nothing more comes of it).
        stage: id of the stage concerned; none where a process died before it began one.
        done: units of work done, of ``total``.
        seconds: that a ``done`` stage took.
        text: the error's one line.
        trace: its traceback.
        repeats: the error would come again (a loss that is not finite): the stage is not tried once more.
        job: the job's name.
    """

    kind: str
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    text: str = ""
    trace: str = ""
    repeats: bool = False
    job: str = ""


def network(online: bool) -> None:
    """Keep this process off the network, or let it reach the hub without telemetry and bars; a user's own switch stays."""
    if online:
        os.environ.update({name: value for name, value in OFFLINE.items() if not name.endswith("_OFFLINE")})
    else:
        offline()


def end(number: int, *_: object) -> NoReturn:
    """Handle a signal by an orderly end, which frees the semaphores that libraries hold."""
    raise SystemExit(128 + number)


def set_threads(threads: int) -> None:
    """Tell numeric libraries how many threads to use; call before importing them."""
    os.environ.update({name: str(threads) for name in _THREAD_VARIABLES})


def redirect(log: Path) -> None:
    """Send this process's output, also that of native libraries, to ``log``: it would tear the progress bar apart."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable(file=sys.__stderr__ or sys.stderr)


def work(
    job: Sequence[plan.Stage],
    digests: Mapping[str, str],
    settings: Settings,
    memory: dict[str, Any],
    send: Callable[[Message], None],
) -> bool:
    """Do the stages of a job one after another, until one fails; say whether all were done.

    Args:
        job: the stages.
        digests: of each, by id.
        settings: of the run.
        memory: kept between jobs of one process.
        send: is told of every step.
    """
    for stage in job:
        if settings.device == "cuda":
            _make_room(stage.kind, memory)
        if not _attempt(stage, digests[stage.id], settings, memory, send):
            return False
    return True


def _make_room(kind: str, memory: dict[str, Any]) -> None:
    """Let go of what stages of another kind keep, and of their memory on the GPU: a model that was evaluated would stay
    beside the one that is trained next, which no estimate counts on."""
    if memory.get("kind", kind) != kind:
        memory.clear()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.cuda.empty_cache()
    memory["kind"] = kind


def _attempt(
    stage: plan.Stage, digest: str, settings: Settings, memory: dict[str, Any], send: Callable[[Message], None]
) -> bool:
    """Do one stage and commit it; report a failure instead of raising it."""
    send(Message("begin", stage.id))
    started = time.monotonic()
    try:
        store.begin(settings.root, stage.id, digest, stage.targets, stage.resumes)
        compute(Context(stage, settings, memory, _reporter(stage.id, send)))
        seconds = time.monotonic() - started
        store.commit(settings.root, stage.id, digest, stage.version, stage.targets, seconds, stage.cache)
    except Exception as error:  # noqa: BLE001 - it crosses to the parent, which decides what becomes of it
        send(_failure(error, stage, settings.root))
        return False
    send(Message("done", stage.id, seconds=seconds))
    return True


def compute(context: Context) -> None:
    """Call the stage's function, together with the other processes of a launch where it is one of theirs."""
    module, _, name = context.stage.run.partition(":")
    function = getattr(importlib.import_module(module), name)
    with taking_part(context.settings.ranks, context.stage):
        function(context)


def _failure(error: Exception, stage: plan.Stage, root: Path) -> Message:
    """Return what the parent is told of a stage's ``error``; call while it is handled."""
    trace = traceback.format_exc()
    if disk.is_full(error):  # also where something took it for bad input: a file that cannot be read, for want of room
        if not stage.resumes:  # nobody can go on from it, and others need the room
            store.clear(root, stage.targets)
        return Message("full", stage.id, text=disk.line(root, f"stage {stage.id}"), trace=trace)
    if isinstance(error, UserError):
        return Message("refused", stage.id, text=str(error), trace=trace)
    line = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
    repeats = isinstance(error, FloatingPointError)  # the same numbers in the same order are as little finite again
    return Message("failed", stage.id, text=line, trace=trace, repeats=repeats)


def _reporter(stage: str, send: Callable[[Message], None]) -> Callable[[int, int], None]:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS:
            last = now
            send(Message("progress", stage, done=done, total=total))

    return report
