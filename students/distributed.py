"""The processes ("ranks") that a launcher started to work on one thing together, and what they say to each other on the host.

Interface, for everything that runs on several ranks::

    from students.distributed import ranks
    mine = ranks()                  # world 1 without a launcher; else joins the process group, on the first call
    mine.rank, mine.world           # 0 .. world - 1; how many there are
    mine.first                      # whether this is rank 0, which alone writes and speaks
    mine.gather(value)              # [value of rank 0, of rank 1, ...] on every rank; anything that pickles
    mine.tell(value)                # rank 0's value, on every rank
    mine.barrier()                  # returns when every rank has called it
    with mine.together():           # what fails on one rank fails on all of them, with the error of the lowest that failed
        ...                         # work of this rank alone: it must not talk to the others

Every rank must make the same calls in the same order. They go over the CPU (gloo), so they never wait for a GPU; with
world 1 they return at once and torch.distributed is not imported. An error outside :meth:`Ranks.together` reaches its own rank
alone: the others see a lost connection when that process ends (:func:`lost` knows it), and a launcher's watch ends them.

A launcher is whatever sets WORLD_SIZE (above 1), RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: ``accelerate launch`` and
``torchrun`` do. ``students.distil.distil`` is called on every rank with the same arguments.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from harness.base import UserError

T = TypeVar("T")

#: How long a rank waits for the others inside a stage: one may write a checkpoint meanwhile.
TIMEOUT = timedelta(minutes=10)

#: What gloo, NCCL and the store say when another process is gone.
_LOST = (
    "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "Timed out waiting",
    "remote process exited", "NCCL communicator was aborted", "ncclRemoteError", "Socket Timeout", "Application timeout",
)  # fmt: skip


class LostRank(RuntimeError):
    """Another rank ended or does not answer; what it was is on its own record."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: its number, 0 .. world - 1.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order, on every rank.

        Raises:
            LostRank: when another rank is gone.
        """
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        with reached():
            dist.all_gather_object(found, value)
        return found

    def tell(self, value: T) -> T:
        """Return rank 0's value on every rank; what the others pass is dropped.

        Raises:
            LostRank: when another rank is gone.
        """
        if self.world == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value if self.first else None]
        with reached():
            dist.broadcast_object_list(box, src=0)
        said: T = box[0]
        return said

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each of equally many flags whether it is set on some rank."""
        if self.world == 1 or not flags:
            return list(flags)
        import torch
        import torch.distributed as dist

        table = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        with reached():
            dist.all_reduce(table, op=dist.ReduceOp.MAX)
        return [bool(value) for value in table.tolist()]

    def barrier(self) -> None:
        """Return when every rank has called this."""
        self.any([False])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Fail on every rank where one fails inside; what is inside must not talk to the other ranks.

        Raises:
            Exception: the error of the lowest rank that failed: there as it was raised, elsewhere a copy of it.
        """
        if self.world == 1:
            yield
            return
        found: Exception | None = None
        try:
            yield
        except LostRank:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, all ranks must know
            found = error
        if not any(self.any([found is not None])):
            return
        sent = self.gather(None if found is None else _packed(found))
        lowest = next(number for number, each in enumerate(sent) if each is not None)
        if found is not None and lowest == self.rank:
            raise found
        raise _unpacked(sent[lowest] or b"") from found


def ranks() -> Ranks:
    """Return this process's place; under a launcher, join the process group if it is not joined.

    Raises:
        UserError: for a launcher's variables that are not whole numbers, or do not fit each other.
        LostRank: when the others cannot be reached.
    """
    world = _number("WORLD_SIZE", 1)
    if world <= 1:
        return Ranks()
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError(f"WORLD_SIZE is {world}, and this torch has no torch.distributed; start one process without a launcher")
    if not dist.is_initialized():
        rank = _number("RANK", -1)
        if not 0 <= rank < world:
            raise UserError(f"RANK is {rank}, and WORLD_SIZE {world}; allowed: 0 to {world - 1}")
        _join()
    return Ranks(dist.get_rank(), dist.get_world_size())


def _join() -> None:
    """Join the group: gloo for the host, NCCL beside it where there is a GPU."""
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0))
        backend = "cpu:gloo,cuda:nccl"
    with reached():
        dist.init_process_group(backend=backend, timeout=TIMEOUT)


def lost(error: BaseException) -> bool:
    """Say whether an error means that another rank is gone."""
    if isinstance(error, LostRank):
        return True
    if not isinstance(error, RuntimeError):
        return False
    import torch.distributed as dist

    known = dist.is_available() and isinstance(error, dist.DistNetworkError)
    return known or any(words in str(error) for words in _LOST)


def leave() -> None:
    """Leave the process group, where one was joined: a process should before it ends."""
    dist = sys.modules.get("torch.distributed")  # nobody who did not import it has joined
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def reached() -> Iterator[None]:
    """Turn what a library says of a connection that is lost into one error.

    Raises:
        LostRank: in its place.
    """
    try:
        yield
    except RuntimeError as error:
        if not lost(error):
            raise
        raise LostRank(
            f"another process of this run ended or does not answer ({str(error).strip().splitlines()[0]})"
        ) from error


def _number(name: str, otherwise: int) -> int:
    value = os.environ.get(name)
    if value is None:
        return otherwise
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name} is {value!r} in the environment; allowed: a whole number, as a launcher sets it") from None


def _packed(error: Exception) -> bytes:
    """An error for another process; one that does not survive the way is told in its words."""
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)
    except Exception:  # noqa: BLE001 - exceptions of libraries may be made with more than their arguments
        sent = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return sent


def _unpacked(sent: bytes) -> Exception:
    found = pickle.loads(sent)
    assert isinstance(found, Exception)
    return found
