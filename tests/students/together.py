"""Trainings on several processes of this machine, started as a launcher starts them, and on one, to compare."""

import contextlib
import json
import multiprocessing
import os
import socket
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from students import checkpoint
from students.options import DistilOptions
from students.recipe import Variant


@dataclass(frozen=True)
class Case:
    """One training: ``inputs`` names what it reads, ``alone`` are the options of one process that does the same."""

    name: str
    recipe: str
    inputs: str
    options: DistilOptions
    alone: DistilOptions
    variant: Variant | None = None
    more: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None


def train(case, inputs, out, options=None, progress=lambda *_: None):
    """Train a case; its ``limit`` is the most logits at once, and options of one process are tried without."""
    from students import distil, stored
    from students.recipe import parse

    with pytest.MonkeyPatch.context() as patch:
        if case.limit is not None and options is None:
            patch.setattr(stored, "LIMIT", case.limit)
        distil.distil(parse(case.recipe), options or case.options, inputs, 0, out, progress, variant=case.variant)


def leave_after(last, case, inputs, out):
    """Train a case, and leave after step ``last``, on all processes at once."""
    from students.training import Training

    class Left(BaseException):
        """Nothing of a training catches it."""

    step = Training.step

    def stops(self, number, members):
        step(self, number, members)
        if number == last:
            raise Left

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Left):
        patch.setattr(Training, "step", stops)
        train(case, inputs, out)


def _child(rank, world, port, work, given, answers):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    from students import distributed

    try:
        found = work(distributed.ranks(), *given)
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise
    answers.put((rank, found, None))
    distributed.leave()


def start(work, *given, world=2):
    """Start ``work(ranks, *given)`` on several processes; return them and the queue of (rank, result, traceback)."""
    context = multiprocessing.get_context("fork")  # what is imported need not be imported again
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.Queue()
    made = [context.Process(target=_child, args=(k, world, port, work, given, answers), daemon=True) for k in range(world)]
    for process in made:
        process.start()
    return made, answers


def run(work, *given, world=2, seconds=300):
    """Return what ``work(ranks, *given)`` returns on each of the processes."""
    made, answers = start(work, *given, world=world)
    found, errors = {}, []
    try:
        for _ in made:
            rank, value, failed = answers.get(timeout=seconds)
            found[rank] = value
            errors += [f"rank {rank}: {failed}"] if failed else []
        # what made the others lose it comes first
        assert not errors, "\n".join(sorted(errors, key=lambda text: "LostRank" in text))
    finally:
        for process in made:
            process.join(20)
            process.kill()
    return [found[rank] for rank in range(world)]


def lines(out):
    return [json.loads(line) for line in (Path(out) / "dynamics.jsonl").read_text().splitlines()]


def close(one, other, what, within=1e-5):
    if isinstance(one, dict):
        assert set(one) == set(other), what
        for name, value in one.items():
            close(value, other[name], f"{what} {name}", within)
    elif isinstance(one, float) and isinstance(other, float):
        assert other == pytest.approx(one, rel=within, abs=within), what
    else:
        assert one == other, what


def same(alone, shared):
    """Two trainings wrote the same records, up to rounding."""
    first, second = lines(alone), lines(shared)
    assert len(first) == len(second) >= 12
    for one, other in zip(first, second, strict=True):
        close({**one, "seconds": 0}, {**other, "seconds": 0}, f"step {one['step']}")
    one, other = (pd.read_parquet(out / "betas.parquet") for out in (alone, shared))
    exact = ["step", "id", "channel", "teacher_correct", "noisy"]
    pd.testing.assert_frame_equal(one[exact], other[exact])
    for name in ("beta", "energy", "teacher_entropy"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    with np.load(alone / "snapshots.npz") as one, np.load(shared / "snapshots.npz") as other:
        assert set(one) == set(other)
        for name in one:
            if name != "edges" and not name.endswith("_step"):
                assert one[name].sum() == other[name].sum(), name
    for name in ("training.json", "weighting.json", "cost.json"):
        one, other = (json.loads((out / name).read_text()) for out in (alone, shared))
        for each in (one, other):
            for vary in ("seconds", "peak_memory_bytes", "memory"):
                each.pop(vary, None)
        close(one, other, name, 1e-4)
    for file in ("student/model.safetensors", "weighting.safetensors", "energies.safetensors"):
        assert (alone / file).is_file() == (shared / file).is_file()
        if (alone / file).is_file():
            one, other = (dict(checkpoint.tensors(out / file)) for out in (alone, shared))
            assert set(one) == set(other)
            for name, value in one.items():
                np.testing.assert_allclose(other[name].numpy(), value.numpy(), rtol=1e-3, atol=2e-4, err_msg=f"{file} {name}")
    assert {p.name for p in alone.iterdir()} == {p.name for p in shared.iterdir()}
