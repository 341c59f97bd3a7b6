"""Where the jobs of a plan run: worker processes of this machine, or tasks of a Ray cluster.

An executor starts jobs and reports what becomes of them; which job may start, what is tried again and what is given up is
decided by :mod:`harness.execute` alone. Another way to run jobs is one more module with a class like these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from harness import ranks
from harness.base import UserError, unknown
from harness.plan import Stage
from harness.workers import Message, Settings

NAMES = ("local", "ray")


class Executor(Protocol):
    """What runs jobs. A job is one or more stages that run one after another in one process."""

    @property
    def width(self) -> int:
        """About how many jobs run at once, for estimates."""

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise a ``UserError`` for a stage that takes more than there will ever be."""

    def fits(self, job: Sequence[Stage]) -> bool:
        """Say whether ``job`` can be started now."""

    def start(self, job: Sequence[Stage], digests: Mapping[str, str]) -> None:
        """Start a job that :meth:`fits`; ``digests`` are its stages', by id."""

    def listen(self) -> list[Message]:
        """Wait a moment for news of the jobs that run, and return it; each job's last message is ``ended``."""

    def stop(self) -> None:
        """End everything that runs and wait until it is gone; what was being written stays partial."""


def check_name(name: str) -> None:
    """Raise a ``UserError`` for an executor that there is not."""
    if name not in NAMES:
        raise unknown("executor (--executor)", name, NAMES)


def elsewhere(name: str) -> bool:
    """Say whether stages run on other machines than this one: those of the Ray cluster that ``RAY_ADDRESS`` names."""
    return name == "ray" and bool(os.environ.get("RAY_ADDRESS"))


def make(name: str, settings: Settings, bound: int | None) -> Executor:
    """Return the executor called ``name``; nothing is started on this machine yet.

    Args:
        name: one of :data:`NAMES`.
        settings: of the run.
        bound: how many jobs may run at once at most, or None.

    Raises:
        UserError: for an unknown name, a package that is not installed, or a cluster that cannot be reached.
    """
    check_name(name)
    leader = ranks.leader()
    if leader is not None:
        if name != "local":
            raise UserError(f"--executor {name} under a launcher: its processes work together; allowed there: local")
        from harness.executors.launched import Launched

        return Launched(settings, leader)
    if name == "ray":
        from harness.executors.on_ray import OnRay

        return OnRay(settings, bound)
    from harness.executors.local import Local

    return Local(settings, bound)
