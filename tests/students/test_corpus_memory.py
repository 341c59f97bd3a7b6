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


def test_the_measurement_sees_what_is_held():
    held = []
    before = streaming.phase(lambda: None).peak_mib
    assert before < 2
    assert streaming.phase(lambda: held.append(bytearray(b"x") * (32 << 20))).peak_mib == pytest.approx(32, abs=2)
    assert streaming.phase(lambda: bytearray(b"x") * (16 << 20)).peak_mib == pytest.approx(16, abs=2), (
        "also what is freed again"
    )
