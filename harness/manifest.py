"""``manifest.json``: what a run was made from, by what, on what."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import left_out, store
from harness.base import read_json, write_json
from harness.blueprint import Blueprint

_PACKAGES = (
    "beta-kd-bench", "torch", "transformers", "lmms-eval", "accelerate", "tokenizers", "safetensors", "datasets", "numpy",
    "pandas", "pyarrow", "pillow", "scipy", "matplotlib",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape numbers; reads metadata, imports nothing."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"  # beta-kd-bench itself, when it runs from a checkout
    return found


@functools.cache  # the code of this process is what it started from, whatever is checked out meanwhile
def git_commit() -> str | None:
    """Return the commit of this source tree, with ``-modified`` when it differs from it; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(folder), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):  # no git here: the field says so with null
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", Path(__file__).name):  # installed into somebody else's repository
        return None
    commit = git("rev-parse", "HEAD")
    modified = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}-modified" if commit and modified else commit


def hardware(device: str) -> dict[str, Any]:
    """Return the machine: platform, processor, cores, memory in GiB, and the device that computed."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "platform": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "device": device,
    }


def build(root: Path, plan: Blueprint, device: str, overrides: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Return the manifest as far as it is known now: questions, models that the run makes and what
    its training left out are added as they appear."""
    import tasks

    protocols: dict[str, Any] = {}
    for name in plan.protocols:
        facts = root / "questions" / f"{name}.json"
        protocols[name] = read_json(facts) if facts.is_file() else {"version": tasks.protocol(name).version}
    weights = plan.sources.given()
    for role, place in plan.sources.made().items():
        entry = store.read_entry(root, f"model/{role}")
        digest = store.select(entry, place) if entry is not None else None
        if digest is not None:
            weights[role] = digest
    return {
        "preset": plan.preset.model_dump(mode="json"),
        "students": list(dict.fromkeys(name for name, _ in plan.students)),
        "seeds": sorted({seed for _, seed in plan.students}),
        "protocols": protocols,
        "limit": plan.limit,
        "models": plan.sources.sources(),
        "versions": versions(),
        "git_commit": git_commit(),
        "hardware": hardware(device),
        "threads": plan.preset.threads,
        "weights": weights,
        "left_out": left_out.lines(root, plan),
        "failed": list(plan.failed),
        "signal": plan.training.signal.lines(root, dict.fromkeys(name for name, _ in plan.students)),
        "vision": [decision.line for decision in plan.vision.decisions],
        **({"rows": [decision.line for decision in plan.rows.decisions]} if plan.rows.decisions else {}),
        "overrides": dict(overrides),
        "command": command,
    }


def write(root: Path, value: Mapping[str, Any]) -> None:
    """Write the manifest, unless it says the same already: its digest names the run in the report."""
    path = root / store.MANIFEST
    if not path.is_file() or read_json(path) != value:
        write_json(path, value)
