"""The benchmark of stored rows runs and compares like with like."""

import importlib.util
import json
from pathlib import Path

import harness

PATH = Path(harness.__file__).parents[1] / "benchmarks" / "corpus_rows.py"


def test_every_case_is_measured(tmp_path):
    spec = importlib.util.spec_from_file_location("corpus_rows", PATH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.main(rows=8, rounds=1, out=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["seconds"]) == 7
    assert all(seconds > 0 for seconds in found["seconds"].values())
