"""What a training cost, read from what it left: speed, peak memory, and how large its weighting is beside the student."""

from __future__ import annotations

import json
import math
from pathlib import Path

from harness.base import UserError
from reports.frames import Missing, Run


def speeds(run: Run, student: str) -> list[float]:
    """Return optimiser steps per second of each training of a student: the inverse of the median step."""
    try:
        frame = run.dynamics
    except Missing:
        return []
    own = frame[frame["student"] == student].drop_duplicates(["seed", "step"])
    medians = own.groupby("seed")["seconds"].median().dropna()
    return [1.0 / float(s) for s in medians if s > 0]


def memories(run: Run, student: str) -> list[float]:
    """Return the peak memory of each training of a student in GB (10^9 bytes), as far as it was recorded."""
    return [c["peak_memory_bytes"] / 1e9 for c in run.costs(student) if c["peak_memory_bytes"] is not None]


def weighting_shares(run: Run, student: str) -> list[float]:
    """Return the numbers that each training's weighting holds, in percent of the student's, from the files' headers."""
    out = []
    for _, folder in run.seed_folders(student):
        weighting, checkpoint = folder / "weighting.safetensors", sorted((folder / "student").glob("*.safetensors"))
        if weighting.is_file() and checkpoint:
            out.append(100.0 * _numbers(weighting) / sum(map(_numbers, checkpoint)))
    return out


def _numbers(path: Path) -> int:
    """How many numbers a safetensors file holds, read from its header alone: 8 bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: not readable as safetensors ({error}). Remove it and run again") from error
