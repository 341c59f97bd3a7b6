"""Memory does not grow with the rows: the benchmark that shows it for a million of them, at a hundredth of its size."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

import streaming

SMALL, LARGE = 2_000, 12_000
#: MiB; the large corpus's rows alone are 7 MiB as text and four times that as Python objects.
ALLOWED = {"index": 6.0, "read": 3.0}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's account of memory")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    context = multiprocessing.get_context("spawn")
    found = []
    for count in (SMALL, LARGE):
        with ProcessPoolExecutor(1, mp_context=context) as pool:  # a process that has held nothing else
            found.append(pool.submit(streaming.measure, tmp_path / str(count), count).result())
    small, large = found
    assert large.json_mib > 5 * small.json_mib > 5
    for name, allowed in ALLOWED.items():
        growth = getattr(large, name).peak_mib - getattr(small, name).peak_mib
        assert growth < allowed, f"{name}: {growth} MiB more for {LARGE - SMALL} rows more"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's account of memory")
def test_the_measurement_sees_what_is_held():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        before, held, freed = pool.submit(_peaks).result()
    assert before < 2
    assert held == pytest.approx(32, abs=2)
    assert freed == pytest.approx(16, abs=2)


def _peaks():
    """Peaks in MiB of doing nothing, of holding 32 MiB, and of holding 16 MiB for a moment."""
    held = []
    return (
        streaming.phase(lambda: None).peak_mib,
        streaming.phase(lambda: held.append(bytearray(b"x") * (32 << 20))).peak_mib,
        streaming.phase(lambda: bytearray(b"x") * (16 << 20)).peak_mib,
    )
