"""Trainings that are killed in the middle, and what two trainings left, compared."""

import json
import os
import signal

import numpy as np

from students import checkpoint
from students.distil import distil
from students.recipe import parse

#: Files whose bytes must be the same.
BYTES = ("betas.parquet", "weighting.safetensors", "energies.safetensors", "training.json", "weighting.json")


def killed(recipe, options, inputs, out, at, variant=None):
    """Train in a child process that is killed when step ``at`` (one that is flushed) is done."""
    child = os.fork()
    if child == 0:

        def progress(done, total):
            if done >= at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            distil(parse(recipe), options, inputs, 0, out, progress, variant=variant)
        finally:
            os._exit(1)  # pytest must not go on in the child
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the training ended before it could be killed"


def lines(out):
    return [{**json.loads(line), "seconds": 0} for line in (out / "dynamics.jsonl").read_text().splitlines()]


def identical(one, other):
    """Every record and weight of two trainings is the same, bit for bit; seconds aside."""
    assert lines(one) == lines(other)
    assert checkpoint.digest_weights(one / "student") == checkpoint.digest_weights(other / "student")
    for name in BYTES:
        assert (one / name).is_file() == (other / name).is_file(), name
        if (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    with np.load(one / "snapshots.npz") as a, np.load(other / "snapshots.npz") as b:
        assert set(a) == set(b)
        assert all(np.array_equal(a[name], b[name]) for name in a)
    costs = [json.loads((out / "cost.json").read_text()) for out in (one, other)]
    for name in ("samples_seen", "teacher_passes_own", "teacher_passes_shared"):
        assert costs[0][name] == costs[1][name], name
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}
