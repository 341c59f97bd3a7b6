"""The processes of one launch as a place where jobs run: one job at a time, stages that can be on all of them together.

The first process has one worker, like any run; the others are workers themselves (harness/follow.py). A stage that is computed
together is done when it ended on all of them. A process that dies ends the command, because the others cannot go on without it
and cannot be joined by a new one; a stage that failed on every process is given up alone, as it would be without a launcher.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from harness.base import UserError
from harness.execute import StageError
from harness.executors import local
from harness.plan import Stage
from harness.ranks import Leader, Lost, Order
from harness.resources import machine
from harness.workers import Message, Settings

#: How long the worker may take to tidy up before it is killed.
_PATIENCE_SECONDS = 1.0
#: How long to wait for news at a time.
_LISTEN_SECONDS = 1.0
#: After an error on one process, how long the others have to report theirs: one of them may be the cause.
GRACE_SECONDS = 20.0


class Launched:
    """Runs jobs on the processes of a launch.

    Args:
        settings: handed to the workers.
        leader: the channel to the other processes.

    Raises:
        StageError: from any method, when a process is gone or left behind by the others' error.
    """

    def __init__(self, settings: Settings, leader: Leader) -> None:
        self._settings = settings
        self._leader = leader
        self._worker: local.Worker | None = None
        self._job: dict[str, Stage] = {}
        self._stage: Stage | None = None
        self._errors: dict[int, Message] = {}
        self._deadline = 0.0

    @property
    def width(self) -> int:
        """One job runs at a time."""
        return 1

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise a ``UserError`` for a stage that takes more than this machine has."""
        local.Local(self._settings, 1).check(stages)

    def fits(self, job: Sequence[Stage]) -> bool:  # noqa: ARG002 - one job, whatever it takes
        """Say whether nothing runs."""
        return not self._job

    def start(self, job: Sequence[Stage], digests: Mapping[str, str]) -> None:
        """Start a job; the other processes are told of each of its stages when it begins."""
        if self._worker is None:
            self._assemble()
            devices = machine(self._settings.device).gpus  # all of them: each process takes its own by its number
            self._worker = local.spawn(0, self._settings, devices)
        self._job = {stage.id: stage for stage in job}
        self._worker.job = job[0].job
        try:
            self._worker.pipe.send((list(job), dict(digests)))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._gone(0) from error

    def listen(self) -> list[Message]:
        """Wait for news of any process, at most a second."""
        assert self._worker is not None, "nothing was started"
        ranks: dict[Connection, int] = {connection: rank for rank, connection in self._leader.peers.items()}
        ranks[self._worker.pipe] = 0
        found: list[Message] = []
        for pipe in wait(list(ranks), _LISTEN_SECONDS):
            assert isinstance(pipe, Connection)
            try:
                message: Message = pipe.recv()
            except (EOFError, OSError) as error:
                raise self._gone(ranks[pipe]) from error
            found += self._handle(ranks[pipe], message)
        if self._errors:
            found += self._judge()
        return found

    def stop(self) -> None:
        """End this process's worker; the others end with the command."""
        if self._worker is not None:
            process = self._worker.process
            process.terminate()
            process.join(_PATIENCE_SECONDS)
            process.kill()  # in the middle of a stage it waits for the others, and hears nothing else
            local.end([self._worker])
            self._worker = None

    def _assemble(self) -> None:
        if not self._leader.assemble():
            missing = sorted(set(range(1, self._leader.membership.world)) - set(self._leader.peers))
            raise StageError("(start of the launch)", f"{self._named(missing[0])} did not appear; see what the launcher says")
        self._tell(Order("start", self._settings))

    def _tell(self, order: Order) -> None:
        try:
            self._leader.send(order)
        except Lost as error:
            raise self._gone(error.rank) from error

    def _handle(self, rank: int, message: Message) -> list[Message]:
        if message.kind == "refused":
            raise UserError(message.text + (f" (stage {message.stage})" if message.stage else ""))
        if message.kind == "failed":
            if not self._errors:
                self._deadline = time.monotonic() + GRACE_SECONDS
            self._errors[rank] = message
            return []
        if rank and message.kind != "full":
            return []
        if message.kind == "begin":
            self._stage = self._job[message.stage]
            if self._stage.distributed:
                self._tell(Order("stage", self._stage))
        elif message.kind == "ended":
            self._job = {}
        return [message]

    def _judge(self) -> list[Message]:
        """Give the stage up once every process that works on it has failed; end the command if one does not."""
        stage = self._stage
        assert stage is not None and self._worker is not None, "an error belongs to a stage"
        first = min(self._errors, key=lambda rank: (self._errors[rank].text.startswith("LostRank"), rank))
        told = self._errors[first]
        whole = self._leader.membership.world if stage.distributed else 1
        if len(self._errors) < whole:
            if time.monotonic() < self._deadline:
                return []
            raise StageError(stage.id, f"{told.text} (on {self._named(first)})", told.trace)
        self._errors, self._job = {}, {}
        # not tried again: every process has raised it, so none of them was merely unlucky
        failed = Message("failed", stage.id, text=told.text, trace=told.trace, repeats=stage.distributed or told.repeats)
        return [failed, Message("ended", job=self._worker.job)]

    def _gone(self, rank: int) -> StageError:
        stage = "(between stages)" if self._stage is None else self._stage.id
        log: Path = self._settings.root / "logs" / f"worker-{rank}.log"
        return StageError(stage, f"{self._named(rank)} is gone (killed, or out of memory?), see {log}")

    def _named(self, rank: int) -> str:
        return f"process {rank + 1} of {self._leader.membership.world} (rank {rank})"
