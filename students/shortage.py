"""Too little memory, said in one line with what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.base import UserError

#: What torch's CPU allocator and CUDA's libraries say; they raise a plain RuntimeError.
_PLAIN = (
    "DefaultCPUAllocator",
    "not enough memory",
    "can't allocate memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
)


def is_shortage(error: BaseException) -> bool:
    """Say whether an error means that there was not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _PLAIN)


class Load:
    """What a training is working on; changed in place as it goes on.

    Attributes:
        step: the optimiser step, 0 before the first.
        rows: rows of the micro-batch.
        longest: tokens of its longest row.
    """

    step: int = 0
    rows: int = 0
    longest: int = 0


@contextmanager
def explained(load: Load, settings: dict[str, object]) -> Iterator[None]:
    """Turn a shortage of memory into an error that says what was too large.

    Args:
        load: what is being worked on.
        settings: name -> value now, of what can be changed.

    Raises:
        UserError: naming the step, the rows of its batch, the longest of them and the settings.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        batch = f"step {load.step} with {load.rows} rows at once, the longest of {load.longest} tokens"
        where = batch if load.step else "loading"
        now = ", ".join(f"{name} (now {value})" for name, value in settings.items())
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"out of memory at {where}; change {now}. The allocator said: {first}") from error
