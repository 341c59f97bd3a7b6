"""Training data that a run did not learn from: said, and never taken for the whole unknowingly."""

import json
import re
from types import SimpleNamespace

import pytest

from harness import left_out
from harness.base import UserError


def corpus(root, name, unreadable=(), rows=20, **skipped):
    folder = root / "corpora" / name
    folder.mkdir(parents=True)
    facts = {
        "source_rows": 20,
        "rows": rows,
        "unreadable": [{"key": key, "reason": "is empty"} for key in unreadable],
        "skipped": {what: {"rows": count, "first": []} for what, count in skipped.items()},
    }
    (folder / "corpus.json").write_text(json.dumps(facts))


def blueprint(**given):
    stages = [SimpleNamespace(name=name) for name in ("captions", "instructions")]
    training = SimpleNamespace(corpora=given.get("corpora", ()))
    return SimpleNamespace(training=training, students=given.get("students", ()), preset=SimpleNamespace(stages=stages))


def test_a_shorter_corpus_is_refused_unless_it_is_allowed(tmp_path):
    corpus(tmp_path, "whole")
    corpus(tmp_path, "short", ("a.jpg", "b.jpg"), rows=17)
    left_out.refuse(tmp_path, ["whole"], 0)
    left_out.refuse(tmp_path, ["whole", "short"], 2)
    folder = re.escape(str(tmp_path / "corpora" / "short"))
    with pytest.raises(
        UserError, match=rf"'short'.* 2 image\(s\).*allowed: 1; the first: a.jpg.*--skip-unreadable 2.*{folder}"
    ):
        left_out.refuse(tmp_path, ["whole", "short"], 1)
    left_out.refuse(tmp_path, ["not there yet"], 0)


def test_what_was_lost_is_said_and_nothing_else(tmp_path):
    corpus(tmp_path, "whole")
    corpus(tmp_path, "short", ("a.jpg",), rows=17, **{"shows an unreadable image": 1, "has no reply": 2})
    for folder, note in (
        ("earlier/ce/seed0/captions", "3 of 9 rows lost 40 supervised tokens (2 %)"),
        ("students/ce/seed0", ""),
        ("students/rkl/seed0", "2 rows had nothing left to learn"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "training.json").write_text(json.dumps({"note": note}))
    found = blueprint(corpora=("whole", "short", "later"), students=(("ce", 0), ("rkl", 0), ("later", 0)))
    assert left_out.lines(tmp_path, found) == [
        "corpus short lacks 3 of its source's 20 rows (1: shows an unreadable image, 2: has no reply)",
        "student ce seed0 captions: 3 of 9 rows lost 40 supervised tokens (2 %)",
        "student rkl seed0: 2 rows had nothing left to learn",
    ]
    assert left_out.lines(tmp_path, blueprint(corpora=("whole",))) == []
