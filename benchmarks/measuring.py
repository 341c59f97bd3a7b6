"""What the benchmarks of training share: the most memory at once, products a second, operations of a pass, tables."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from harness import manifest

MIB = 1 << 20


def peak_bytes(work: Callable[[], object]) -> int:
    """Largest number of bytes allocated at once while ``work`` runs, beyond what there was, from torch's own allocator.

    Raises:
        RuntimeError: when torch's profiler reports no allocation.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    allocations = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: float(e["ts"]))
    if not allocations:
        raise RuntimeError("torch.profiler reported no allocation, so the peak is unknown")
    live = largest = 0
    for event in allocations:
        live += int(event["args"]["Bytes"])
        largest = max(largest, live)
    return largest


def shares(work: Callable[[], object], most: int = 8) -> dict[str, float]:
    """Shares of the processor time of ``work`` by torch's operations, the largest ``most`` of them, from torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    found = sorted(((e.self_cpu_time_total, e.key) for e in profiler.key_averages()), reverse=True)
    total = sum(seconds for seconds, _ in found)
    return {name: seconds / total for seconds, name in found[:most]}


def rate(size: int = 1024, repeats: int = 7) -> float:
    """Floating-point operations a second of the product of two float32 matrices [size, size]: the best of some, after one."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(repeats + 1):
        started = time.process_time()
        a @ b
        seconds.append(time.process_time() - started)
    return 2 * size**3 / min(seconds[1:])


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention of ``work``, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor seconds that ``work`` takes: what others do on this machine is not in them."""
    started = time.process_time()
    work()
    return time.process_time() - started


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def machine() -> dict[str, Any]:
    """Commit, versions and hardware, with the rate that floors are made of."""
    return {
        "git_commit": manifest.git_commit(), "versions": manifest.versions(), "hardware": manifest.hardware("cpu"),
        "threads": torch.get_num_threads(), "operations_per_second": rate(),
    }  # fmt: skip


def where(command: str, facts: dict[str, Any]) -> str:
    """One sentence on what was measured where, for the head of a page."""
    hardware = facts["hardware"]
    return (
        f"`{command}` at commit `{facts['git_commit']}`, torch {facts['versions']['torch']}, {facts['threads']} thread(s) of"
        f" {hardware['processor']} ({hardware['cores']} cores); matrix products at"
        f" {facts['operations_per_second'] / 1e9:.0f} GFLOP/s."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
