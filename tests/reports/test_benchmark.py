"""benchmarks/report_statistics.py runs and writes what it says. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_of_the_statistics_runs(tmp_path):
    out = tmp_path / "found.json"
    small = ["--students", "4", "--seeds", "2", "--resamples", "100", "--share", "0.02", "--no-growth", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "report_statistics.py"), *small], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())["records"]
    assert [r["students"] for r in records] == [4]
    assert records[-1]["rows"] == records[-1]["questions"] * 4 * 2
    assert all(r["peak_gib"] > 0 and r["seconds"] > 0 and r["cells"] > 0 for r in records)
