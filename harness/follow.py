"""What a process of a launch does that is not the first: work on the stages that it is told, and end when it is told to."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from harness import disk, store, workers
from harness.base import UserError
from harness.plan import Stage
from harness.ranks import Membership, Order, connect
from harness.workers import Context, Message, Settings

#: The exit code of a process that ends because another one did; the first one's says why.
FAILED = 4
#: How long an interrupted stage may take to unwind before the process ends without.
_PATIENCE_SECONDS = 5.0
#: How long a process that its launcher told to end waits for the first one's word.
_TERM_SECONDS = 20.0


def follow(membership: Membership) -> NoReturn:
    """Do what the first process orders, until it says that the command is over; exits with the command's code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    try:
        connection = connect(membership)
    except (OSError, RuntimeError) as error:  # torch's store raises the latter: nobody is there
        raise SystemExit(FAILED) from error
    channel = _Channel(membership, connection)
    order = channel.next()
    _work(replace(order.value, ranks=membership), channel)


class _Channel:
    """Reads orders in a thread of its own, so that an end is noticed in the middle of a stage."""

    def __init__(self, membership: Membership, connection: Connection) -> None:
        self._membership, self._connection = membership, connection
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._terminal = os.dup(2)  # standard error itself goes to the log
        self._code, self._over = FAILED, False
        signal.signal(signal.SIGTERM, self._told)
        threading.Thread(target=self._read, name="read-orders", daemon=True).start()

    def next(self) -> Order:
        """Return the next order, when there is one."""
        return self._orders.get()

    def tell(self, message: Message) -> None:
        """Report to the first process."""
        try:
            self._connection.send(message)
        except OSError:  # it is gone, which the reading thread sees and acts on
            time.sleep(2 * _PATIENCE_SECONDS)

    def _read(self) -> None:
        while True:
            try:
                order: Order = self._connection.recv()
            except (EOFError, OSError):
                if self._membership.rank == 1:  # the others are silent, so that it is said once
                    line = f"error: process 1 of {self._membership.world} (rank 0) is gone; what is complete is kept\n"
                    os.write(self._terminal, line.encode())
                self._leave(FAILED)
            if order.what == "end":
                self._leave(order.value)
            self._orders.put(order)

    def _leave(self, code: int) -> NoReturn:
        """End this process: by an exception in the stage, which frees what it holds, or else at once."""
        self._code, self._over = code, True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE_SECONDS)
        os._exit(code)

    def _told(self, *_: object) -> None:
        """Handle SIGTERM: the first process's order, or a launcher's, of which the first process says why."""
        if self._over:
            raise SystemExit(self._code)
        signal.signal(signal.SIGALRM, self._alone)
        signal.setitimer(signal.ITIMER_REAL, _TERM_SECONDS)

    def _alone(self, *_: object) -> NoReturn:
        raise SystemExit(FAILED)


def _work(settings: Settings, channel: _Channel) -> NoReturn:
    rank = settings.ranks.rank if settings.ranks is not None else 0
    if not (settings.root / store.HOLDER).is_file():
        channel.tell(Message("refused", text=f"{settings.root} is not the same folder on all machines of this launch; name"
                             " one on storage that they share with --out"))  # fmt: skip
    workers.set_threads(settings.threads)
    workers.network(settings.online)
    with store.worker_lock(settings.root, rank):
        workers.redirect(settings.root / "logs" / f"worker-{rank}.log")
        memory: dict[str, Any] = {}
        while True:
            channel.tell(_take_part(channel.next().value, settings, memory))


def _take_part(stage: Stage, settings: Settings, memory: dict[str, Any]) -> Message:
    """Do this process's part of a stage; the first process opens it and commits it."""
    started = time.monotonic()
    try:
        workers.compute(Context(stage, settings, memory, lambda done, total: None))  # noqa: ARG005 - the first one shows it
    except Exception as error:  # noqa: BLE001 - it crosses to the first process, which decides what becomes of it
        if disk.is_full(error):
            line = disk.line(settings.root, f"stage {stage.id}")
            return Message("full", stage.id, text=line, trace=traceback.format_exc())
        if isinstance(error, UserError):
            return Message("refused", stage.id, text=str(error), trace=traceback.format_exc())
        line = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
        return Message("failed", stage.id, text=line, trace=traceback.format_exc())
    return Message("done", stage.id, seconds=time.monotonic() - started)
