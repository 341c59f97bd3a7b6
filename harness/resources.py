"""What a stage takes of a machine while it runs, and what a machine has to give.

Declared per kind of stage in the preset (``resources:``); it decides what runs at once and where, never a result, so it is in
no digest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from harness.base import Strict, UserError

#: Bytes of a GB, as in presets.
GB = 1e9
#: Where version 2 and version 1 of control groups keep a limit on memory, and what is used of it.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
#: What a control group without a limit says, or more than any machine has.
_NO_LIMIT = 1 << 50


def _gpus(value: float) -> float:
    if value > 1 and not value.is_integer():
        raise ValueError("a part of one GPU (below 1), or whole GPUs")
    return value


class Resources(Strict):
    """What one stage takes while it runs.

    Attributes:
        cpus: cores; where a preset names none, its ``threads``.
        gpus: GPUs of a run on CUDA: 0, a part of one, or whole ones. On the CPU they count for nothing.
        memory_gb: of main memory, in GB (1e9 bytes).
    """

    cpus: PositiveInt = 1
    gpus: Annotated[float, Field(ge=0), AfterValidator(_gpus)] = 0.0
    memory_gb: Annotated[float, Field(gt=0)] = 1.0


#: Kinds of stages that run models take a GPU. Their memory is what the embedded models and data need: students of the preset
#: miniature took up to 1.64 GB each (their cost.json).
DEFAULTS: Mapping[str, Resources] = {
    "data": Resources(memory_gb=1.5),
    "corpus": Resources(memory_gb=1.5),
    "encode": Resources(memory_gb=1.5),
    "questions": Resources(memory_gb=1.5),
    "count": Resources(memory_gb=1.5),
    "collect": Resources(memory_gb=1.0),
    "report": Resources(memory_gb=2.0),
    "model": Resources(gpus=1, memory_gb=1.7),
    "signal": Resources(gpus=1, memory_gb=1.7),
    "kept": Resources(gpus=1, memory_gb=1.7),
    "vision": Resources(gpus=1, memory_gb=1.7),
    "student": Resources(gpus=1, memory_gb=1.7),
    "evaluate": Resources(gpus=1, memory_gb=1.7),
}


def of_kind(kind: str, threads: int, given: Mapping[str, Resources]) -> Resources:
    """Return what a stage of ``kind`` takes: the preset's words, the defaults for what it does not say, threads for cores."""
    usual = DEFAULTS[kind].model_copy(update={"cpus": threads})
    said = given.get(kind)
    return usual if said is None else usual.model_copy(update=said.model_dump(exclude_unset=True))


def together(parts: Sequence[Resources], device: Literal["cpu", "cuda"]) -> Resources:
    """Return what stages need that run one after another in one worker: the most of each."""
    return Resources(
        cpus=max(part.cpus for part in parts),
        gpus=max(part.gpus for part in parts) if device == "cuda" else 0.0,
        memory_gb=max(part.memory_gb for part in parts),
    )


@dataclass(frozen=True)
class Machine:
    """What is there for all stages that run at once.

    Attributes:
        cpus: cores that this process may use.
        gpus: names by which ``CUDA_VISIBLE_DEVICES`` selects them.
        memory_gb: main memory that nobody uses now, in GB.
        whole_memory_gb: main memory in all, in GB.
    """

    cpus: int
    gpus: tuple[str, ...]
    memory_gb: float
    whole_memory_gb: float

    def width(self, needs: Resources, device: Literal["cpu", "cuda"], bound: int | None) -> int:
        """Return how many stages that take ``needs`` run at once; at least one."""
        limits = [self.cpus // needs.cpus, int(self.memory_gb / needs.memory_gb)]
        if device == "cuda" and needs.gpus:
            limits.append(int(len(self.gpus) / needs.gpus))
        return max(1, min(limits if bound is None else [*limits, bound]))

    def check(self, kind: str, needs: Resources, device: Literal["cpu", "cuda"]) -> None:
        """Refuse what this machine can never give; more cores than it has only slow a stage down.

        Raises:
            UserError: naming the field of the preset, what it says and what there is.
        """
        if device == "cuda" and needs.gpus > len(self.gpus):
            raise UserError(f"resources.{kind}.gpus is {needs.gpus:g}, and torch sees {len(self.gpus)} GPU(s) on this machine")
        if needs.memory_gb > self.whole_memory_gb:
            raise UserError(
                f"resources.{kind}.memory_gb is {needs.memory_gb:g}, and this machine has {self.whole_memory_gb:.1f} GB in all"
            )


def machine(device: Literal["cpu", "cuda"]) -> Machine:
    """Look at this machine, within the limits of the control group that this process is in."""
    free, whole = _memory()
    return Machine(_cores(), _devices() if device == "cuda" else (), free / GB, whole / GB)


def _cores() -> int:
    """Cores that this process may run on, and that its control group pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def _memory() -> tuple[int, int]:
    """Return (bytes that nobody uses, bytes in all)."""
    import psutil

    found = psutil.virtual_memory()
    free, whole = int(found.available), int(found.total)
    for folder, limit, used in _GROUPS:
        said, now = _words(f"{folder}/{limit}"), _words(f"{folder}/{used}")
        if said and now and said[0] != "max" and int(said[0]) < _NO_LIMIT:
            stat = dict(line.split() for line in Path(f"{folder}/memory.stat").read_text(encoding="ascii").splitlines())
            kept = int(stat.get("inactive_file", 0))  # pages of files, which the kernel gives back when asked
            whole, free = min(whole, int(said[0])), min(free, max(0, int(said[0]) - int(now[0]) + kept))
    return free, whole


def _words(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="ascii").split() if file.is_file() else []


def _devices() -> tuple[str, ...]:
    """Return the GPUs that this process may use, in torch's order."""
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidiactl").exists():
        return ()
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(named[:count]) if named else tuple(str(number) for number in range(count))
