"""Jobs as tasks of a Ray cluster: the one that ``RAY_ADDRESS`` names, or a cluster of this machine alone.

The run folder, which every node sees at the same path, is the only channel. A job writes its messages to ``.jobs/``, one line
each, what libraries print to ``logs/``, and its results where its stages' targets are; Ray itself carries the description of a
job to a node and says when a task is over. The driver (the process with the command) alone holds the folder's lock and decides;
a job ends itself within a second once the driver that gave it no longer holds the folder, so that no orphan writes into it.
Ray repeats nothing by itself: a task that is lost is reported, and :mod:`harness.execute` counts its attempts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import manifest, store, workers
from harness.base import UserError, read_json, remove
from harness.plan import Stage
from harness.resources import GB, Machine, Resources, machine, together
from harness.workers import Message, Settings

#: Where jobs write their messages, relative to the run folder.
FOLDER = ".jobs"
_LISTEN_SECONDS = 0.3
_PATIENCE_SECONDS = 10.0
#: How often a job looks whether its driver still holds the folder, and how long it waits for its predecessor to be gone.
_WATCH_SECONDS = 1.0
_LOCK_SECONDS = 60.0
#: Ray keeps objects that tasks pass to each other here; jobs pass none. Its smallest size is about this.
_STORE_BYTES = 100 * 2**20
#: Jobs that wait in Ray's own queue beside those that can run, so that an autoscaler sees that there is more to do.
_QUEUE = 8


@dataclass
class _Job:
    """A task in flight; ``read`` bytes of its messages are known, and ``stage`` is what it works on."""

    name: str
    task: Any
    messages: Path
    log: Path
    read: int = 0
    stage: str = ""


class OnRay:
    """Runs jobs as Ray tasks.

    Args:
        settings: handed to the jobs.
        bound: how many to run at once at most; None: as many as the cluster allows.
        there: this machine, where the cluster is of this machine alone; by default what it has.

    Raises:
        UserError: when ray is not installed, or nothing answers at ``RAY_ADDRESS``.
    """

    def __init__(self, settings: Settings, bound: int | None, there: Machine | None = None) -> None:
        self._settings = settings
        self._bound = bound
        self._machine = None if os.environ.get("RAY_ADDRESS") else there or machine(settings.device)
        self._ray = connect(self._machine)
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._order = _Order(settings, uuid.uuid4().hex, read_json(settings.root / store.HOLDER), manifest.versions())
        remove(settings.root / FOLDER)
        (settings.root / FOLDER).mkdir()

    @property
    def width(self) -> int:
        """About how many jobs run at once."""
        there = self._ray.cluster_resources()
        limits = [int(there.get("CPU", 1)) // self._settings.threads]
        limits += [int(there.get("GPU", 0))] if self._settings.device == "cuda" else []
        return max(1, min(limits if self._bound is None else [*limits, self._bound]))

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise a ``UserError`` for a stage that no node of the cluster can run."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for kind, needs in dict.fromkeys((stage.kind, stage.resources) for stage in stages):
            if self._machine is not None:
                self._machine.check(kind, needs, self._settings.device)
            elif not any(_holds(node, together([needs], self._settings.device)) for node in nodes):
                said = "; ".join(
                    f"{n.get('CPU', 0):g} CPUs, {n.get('GPU', 0):g} GPUs, {n.get('memory', 0) / GB:.0f} GB" for n in nodes
                )
                raise UserError(
                    f"resources.{kind} asks for {needs.cpus} CPUs, {needs.gpus:g} GPUs and {needs.memory_gb:g} GB of one node,"
                    f" and no node of the cluster has them ({said})"
                )

    def fits(self, job: Sequence[Stage]) -> bool:  # noqa: ARG002 - Ray finds the place
        """Say whether another job may be handed to Ray, which starts it as soon as a node has room."""
        return len(self._jobs) < (self.width + _QUEUE if self._bound is None else self._bound)

    def start(self, job: Sequence[Stage], digests: Mapping[str, str]) -> None:
        """Hand ``job`` to Ray."""
        number = next(self._numbers)
        root = self._settings.root
        messages, log = root / FOLDER / f"{number}.jsonl", root / "logs" / f"{job[0].job.replace('/', '-')}.log"
        needs = self._needs(job)
        task = self._ray.remote(_work).options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, memory=int(needs.memory_gb * GB), max_retries=0, name=job[0].job
        )
        reference = task.remote(self._order, number, list(job), dict(digests), messages, log)
        self._jobs.append(_Job(job[0].job, reference, messages, log))

    def listen(self) -> list[Message]:
        """Wait a moment for a task to end, and return what all of them have written meanwhile.

        Raises:
            UserError: when a node cannot take part: it does not see the run folder, or has other versions of packages.
        """
        over, _ = self._ray.wait([job.task for job in self._jobs], num_returns=1, timeout=_LISTEN_SECONDS)
        found: list[Message] = []
        for job in list(self._jobs):
            found += _news(job)
            if job.task in over:
                self._jobs.remove(job)
                found += _news(job) + self._ended(job)
        return found

    def stop(self) -> None:
        """End all tasks and leave the cluster, which ends with it where it is of this machine alone."""
        for job in self._jobs:
            self._ray.cancel(job.task, force=True)
        if self._jobs:
            self._ray.wait([job.task for job in self._jobs], num_returns=len(self._jobs), timeout=_PATIENCE_SECONDS)
        self._jobs = []
        self._ray.shutdown()
        remove(self._settings.root / FOLDER)

    def _needs(self, job: Sequence[Stage]) -> Resources:
        needs = together([stage.resources for stage in job], self._settings.device)
        if self._machine is None:
            return needs
        # alone, a job may have the whole machine, as with --executor local
        most = {"cpus": min(needs.cpus, self._machine.cpus), "memory_gb": min(needs.memory_gb, self._machine.memory_gb)}
        return needs.model_copy(update=most)

    def _ended(self, job: _Job) -> list[Message]:
        """Return what a task that is over has to say beyond its messages."""
        ended = Message("ended", job=job.name)
        job.messages.unlink(missing_ok=True)
        try:
            self._ray.get(job.task)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from error
            text = f"{type(cause or error).__name__}: {cause or error}".splitlines()[0]
        except self._ray.exceptions.RayError as error:
            text = f"its worker died ({type(error).__name__}; out of memory?), see {job.log}"
        else:
            return [ended]
        return [Message("died", job.stage, text=text, job=job.name), ended]


def connect(there: Machine | None) -> Any:
    """Return ray, connected to the cluster of ``RAY_ADDRESS``, or to a new one of the machine that is ``there``.

    Raises:
        UserError: when ray is not installed, or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a job without a GPU sees none
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--executor ray needs the package ray, which is not installed: pip install 'beta-kd-bench[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "include_dashboard": False}
    if there is not None:
        ray.init(
            address="local", num_cpus=there.cpus, num_gpus=len(there.gpus), object_store_memory=_STORE_BYTES,
            _memory=there.memory_gb * GB, **quiet,
        )  # fmt: skip
        return ray
    address = os.environ["RAY_ADDRESS"]
    del quiet["include_dashboard"]  # of a cluster that runs already it is not ours to say
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"RAY_ADDRESS is {address!r}, and no Ray cluster answers there ({first})") from error
    return ray


def _knock(address: str) -> None:
    """Raise an ``OSError`` where nothing listens at ``[ray://]HOST:PORT``; Ray itself would try again for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_SECONDS).close()


def has_gpu() -> bool:
    """Say whether the cluster of ``RAY_ADDRESS`` has a GPU; connects to it."""
    return float(connect(None).cluster_resources().get("GPU", 0)) > 0


def _holds(node: Mapping[str, float], needs: Resources) -> bool:
    return (
        node.get("CPU", 0) >= needs.cpus and node.get("GPU", 0) >= needs.gpus and node.get("memory", 0) >= needs.memory_gb * GB
    )


def _news(job: _Job) -> list[Message]:
    """Return the messages that a job has written since the last look."""
    if not job.messages.is_file():
        return []
    with job.messages.open("rb") as file:
        file.seek(job.read)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]  # a line that is being written is read next time
    job.read += len(whole)
    found = [Message(**json.loads(line)) for line in whole.splitlines()]
    for message in found:
        if message.kind in ("begin", "done"):
            job.stage = message.stage if message.kind == "begin" else ""
    return found


# ---- in a task -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    """What all jobs of one command have in common.

    Attributes:
        settings: of the run.
        command: tells commands apart: what a process has in memory is of use to the jobs of one command only.
        holder: what the folder's lock says while the driver lives.
        versions: of the driver's Python and packages.
    """

    settings: Settings
    command: str
    holder: Mapping[str, Any]
    versions: Mapping[str, str]


#: What the jobs of one command share in this process, by command.
_memories: dict[str, dict[str, Any]] = {}


def _work(order: _Order, number: int, job: Sequence[Stage], digests: Mapping[str, str], messages: Path, log: Path) -> None:
    """Do one job on whatever node this is."""
    _check_node(order)
    settings = order.settings
    workers.set_threads(settings.threads)
    workers.network(settings.online)
    over = threading.Event()
    threading.Thread(target=_watch, args=(order, over), name="watch-driver", daemon=True).start()
    lock = store.worker_lock(settings.root, number)
    try:
        with lock.acquire(timeout=_LOCK_SECONDS), _redirected(log):
            if order.command not in _memories:
                _memories.clear()
                _memories[order.command] = {}
            if not workers.work(job, digests, settings, _memories[order.command], lambda message: _write(messages, message)):
                _memories.clear()  # what an error left behind is nobody's to trust
    finally:
        over.set()
        Path(lock.lock_file).unlink(missing_ok=True)


def _check_node(order: _Order) -> None:
    """Make sure that this node can take part.

    Raises:
        UserError: when it does not see the run folder, or has other versions of packages than the driver.
    """
    root, host = order.settings.root, socket.gethostname()
    if not _held(order):
        raise UserError(f"{root} on node {host} is not the run folder: it must lie on storage that all nodes share")
    here = manifest.versions()
    for name, version in order.versions.items():
        if here.get(name) != version:
            raise UserError(f"node {host} has {name} {here.get(name)}, and the driver has {version}: results would differ")


def _held(order: _Order) -> bool:
    """Say whether the driver still holds the run folder."""
    path = order.settings.root / store.HOLDER
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == order.holder)
    except FileNotFoundError:
        return False


def _watch(order: _Order, over: threading.Event) -> None:
    """End this process when its driver does not hold the folder any more."""
    while not over.wait(_WATCH_SECONDS):
        if not _held(order):
            os._exit(3)


def _write(path: Path, message: Message) -> None:
    """Append one line; opened and closed each time, because shared file systems show others what was closed."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(message)) + "\n")


@contextlib.contextmanager
def _redirected(log: Path) -> Iterator[None]:
    """Send the output of this process to ``log``, and then where it went before: Ray uses the process again."""
    kept = os.dup(1), os.dup(2)
    workers.redirect(log)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(kept, start=1):
            os.dup2(old, number)
            os.close(old)
