"""benchmarks/evaluation.py compares what it says, and writes it. No time is asserted."""

import json

import pytest

import evaluation
import tasks
from harness import miniature

OPTIONS = {"device": "cpu", "repeats": 1, "batch_size": 16, "plain": 3}


@pytest.fixture(scope="module")
def suite():
    protocol = tasks.protocol("gqa@miniature")
    return {protocol.name: (protocol, tasks.load(protocol, limit=4))}


def test_the_plain_way_gives_the_replies_and_the_likelihoods_of_this_project(suite):
    (row,) = evaluation.compare("base", miniature.FOLDER / "base", suite, OPTIONS)
    assert (row.questions, row.differing, row.padding) == (3, 0, "none")
    assert row.gold_apart < 1e-4
    assert min(row.plain, row.first, row.next, row.gold_plain, row.gold_next) > 0


def test_other_replies_and_likelihoods_are_counted(suite, monkeypatch):
    monkeypatch.setattr(evaluation.Plain, "reply", lambda *_: "something else")
    monkeypatch.setattr(evaluation.Plain, "gold", lambda *_: 100.0)
    (row,) = evaluation.compare("base", miniature.FOLDER / "base", suite, OPTIONS)
    assert row.differing == 3
    assert row.gold_apart > 50


def test_the_command_writes_its_numbers_and_its_table(tmp_path):
    out = tmp_path / "deep" / "found.json"
    evaluation.main(None, 1, ["pope@miniature"], 1, 2, 16, 1, "cpu", out)
    found = json.loads(out.read_text())
    assert [(row["model"], row["differing"]) for row in found["rows"]] == [("teacher", 0), ("base", 0)]
    assert set(found["ratios"]) == {"first", "next"}
    table = out.with_suffix(".md").read_text()
    assert table.count("| pope@miniature |") == 2 and "0 replies differ" in table
