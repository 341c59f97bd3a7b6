"""What training one student took: seconds, peak memory, and how often the teacher looked at a sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.base import write_json

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Cost:
    """Counts from its making until :meth:`write`.

    On a GPU the peak is of torch's allocations there. On a CPU it is of the process's resident memory: Linux lets the mark be
    reset; where it may not be, the peak of the worker's whole life is an upper bound, and ``memory`` says so.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.started = device, time.monotonic()
        self._before, self._highest = 0.0, 0  # of earlier attempts that this one goes on from
        self.memory = "GPU allocations"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self.memory = "resident memory of the process" if _reset() else "resident memory of the worker, all its students"

    def resume(self, seconds: float, peak: int | None) -> None:
        """Count what an earlier attempt took, from which this one goes on."""
        self._before, self._highest = seconds, peak or 0

    def seconds(self) -> float:
        """Seconds so far, over all attempts."""
        return self._before + time.monotonic() - self.started

    def peak(self) -> int | None:
        """Peak bytes so far, over all attempts; None on a CPU whose system does not tell."""
        now = self._peak()
        return None if now is None else max(now, self._highest)

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if not _STATUS.is_file():
            return None
        marks = [
            line for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith("VmHWM:")
        ]
        return 1024 * int(marks[0].split()[1]) if marks else None

    def write(self, out: Path, samples_seen: int, signal_passes: int, live_passes: int, peak: int | None) -> None:
        """Write ``cost.json`` into ``out``.

        Args:
            samples_seen: samples that the student was trained on, repeats counted.
            signal_passes: samples that the teacher looked at once, for all students together.
            live_passes: samples that it looked at for this student alone, repeats counted.
            peak: most bytes that one process held.
        """
        found: dict[str, Any] = {
            "seconds": round(self.seconds(), 3), "device": self.device.type,
            "peak_memory_bytes": peak, "memory": self.memory, "samples_seen": samples_seen,
            "teacher_passes_shared": signal_passes, "teacher_passes_own": live_passes,
        }  # fmt: skip
        write_json(out / "cost.json", found)


def max_of(peaks: Sequence[int | None]) -> int | None:
    """Return the largest of several processes' peaks; None where one of them could not tell."""
    known = [peak for peak in peaks if peak is not None]
    return max(known) if len(known) == len(peaks) else None


def _reset() -> bool:
    """Lower the process's high-water mark to what it holds now; False where the system does not allow it."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
