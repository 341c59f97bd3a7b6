"""What a preset needs of a machine, and what the machine has: looked at before a run starts, not hours later."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.base import UserError
from harness.config import Preset

GB = 1e9
_ASK = """
import json, torch
free, whole = torch.cuda.mem_get_info(0)
print(json.dumps([torch.cuda.get_device_name(0), whole, free]))
"""


@dataclass(frozen=True)
class Machine:
    """What there is.

    Attributes:
        gpu: name of the first GPU that torch can use, or None.
        gpu_bytes: its memory.
        free_gpu_bytes: what of it nobody uses.
        free_disk_bytes: where the run folder lies, or will lie.
    """

    gpu: str | None
    gpu_bytes: int
    free_gpu_bytes: int
    free_disk_bytes: int

    @property
    def text(self) -> str:
        """One line."""
        gpu = "no GPU that torch can use"
        if self.gpu is not None:
            gpu = f"{self.gpu} with {self.gpu_bytes / GB:.0f} GB, {self.free_gpu_bytes / GB:.0f} GB of them free"
        return f"{gpu}; {self.free_disk_bytes / GB:.0f} GB of disk free"


def has_gpu() -> bool:
    """Say whether torch can use a GPU; torch, which takes seconds to import, is asked only where a driver is present."""
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def free_disk(root: Path) -> int:
    """Return the bytes free where ``root``, which need not exist yet, lies or will lie."""
    place = root
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def machine(root: Path) -> Machine:
    """Look at this machine; ``root`` is the run folder, which need not exist yet."""
    disk = free_disk(root)
    if not has_gpu():
        return Machine(None, 0, 0, disk)
    # asked in a process of its own: asking for free memory keeps half a gigabyte of the GPU for as long as the asker lives
    told = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True, timeout=120).stdout
    name, whole, free = json.loads(told.splitlines()[-1])
    return Machine(str(name), int(whole), int(free), disk)


def check(preset: Preset, device: str, found: Machine, disk: float) -> None:
    """Refuse a run that this machine cannot do.

    Args:
        preset: the experiment.
        device: ``cpu`` or ``cuda``, as it will run.
        found: the machine.
        disk: bytes that the run will write.

    Raises:
        UserError: naming the preset, what it needs and what was found.
    """
    needs = preset.requires
    if needs.gpu and (device == "cpu" or found.gpu is None):
        memory = "" if needs.gpu_gb is None else f" with {needs.gpu_gb:.0f} GB of memory"
        what = "--device cpu was given" if found.gpu is not None else "found: no GPU that torch can use"
        raise UserError(f"preset {preset.name!r} needs a GPU{memory}; {what} (--dry-run shows the plan without one)")
    if needs.gpu_gb is not None and found.free_gpu_bytes < needs.gpu_gb * GB:
        raise UserError(
            f"preset {preset.name!r} needs a GPU with {needs.gpu_gb:.0f} GB of free memory; found: {found.text}. Smaller"
            " micro_rows, or lora, need less: see --dry-run, and a preset of your own that extends this one"
        )
    check_disk(preset, found.free_disk_bytes, disk)


def check_disk(preset: Preset, free: int, disk: float) -> None:
    """Refuse to write more than there is room for.

    Args:
        preset: the experiment.
        free: bytes of disk free.
        disk: bytes that will be written.

    Raises:
        UserError: naming both sizes.
    """
    if free < disk:
        raise UserError(
            f"preset {preset.name!r} will write about {disk / GB:.0f} GB; found: {free / GB:.0f} GB of disk"
            " free. Name another place with --out, fewer --students, or bound the caches with --cache-gb"
        )
