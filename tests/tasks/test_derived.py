"""Derived scores, and that two protocols of one benchmark never meet in one column."""

from __future__ import annotations

import math

import pytest
import yaml

import tasks
from harness.base import UnknownName, UserError
from tasks import averages

NAME = "average@papers"


def numbers(gqa, sqa, textvqa, pope, mme, mmbench):
    keys = ("gqa@llava", "scienceqa@img", "textvqa@ocr", "pope@mean-f1", "mme@perception", "mmbench@circular")
    return dict(zip(keys, (gqa, sqa, textvqa, pope, mme, mmbench), strict=True))


def test_the_papers_average_reproduces_published_rows():
    """Beta-KD's model card: cosine base, task and instance, with the averages 63.4, 64.7 and 65.3 printed beside them."""
    rows = {
        63.4: numbers(59.9, 61.3, 52.2, 84.6, 1308.4, 57.1),
        64.7: numbers(60.8, 61.2, 53.9, 85.4, 1352.0, 59.1),
        65.3: numbers(61.2, 62.9, 54.2, 86.0, 1350.3, 60.2),
    }
    average = tasks.derived(NAME)
    for printed, row in rows.items():
        assert average.value(row) == pytest.approx(printed, abs=0.06)
        by_hand = (sum(v for k, v in row.items() if k != "mme@perception") + row["mme@perception"] / 20) / 6
        assert average.value(row) == pytest.approx(by_hand)


def test_a_term_that_is_missing_or_another_protocols_is_refused():
    average, row = tasks.derived(NAME), numbers(60, 60, 50, 80, 1300, 60)
    with pytest.raises(UserError, match="lacks pope@mean-f1"):
        average.value({k: v for k, v in row.items() if k != "pope@mean-f1"})
    with pytest.raises(UserError, match="takes pope@mean-f1, not pope@lmms: two protocols of one benchmark are never mixed"):
        average.value({**row, "pope@lmms": 80.0})
    with pytest.raises(UnknownName, match="unknown term"):
        average.value({**row, "easyvqa@test": 80.0})
    with pytest.raises(UserError, match="gqa@llava is nan"):
        average.value({**row, "gqa@llava": math.nan})


def test_derived_scores_are_files(tmp_path, monkeypatch):
    assert tasks.derived_names() == [NAME]
    with pytest.raises(UnknownName, match="Did you mean 'average@papers'"):
        tasks.derived("average@paper")
    facts = yaml.safe_load((averages.FOLDER / f"{NAME}.yaml").read_text(encoding="utf-8"))
    monkeypatch.setattr(averages, "FOLDER", tmp_path)
    for name, terms, message in (
        ("average@mixed", {"pope@lmms": 1, "pope@mean-f1": 1}, "two protocols of one benchmark"),
        ("average@unknown", {"pope@f2": 1}, "unknown protocol"),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**facts, "name": name, "terms": terms}))
        with pytest.raises(UserError, match=message):
            tasks.derived(name)


def test_a_column_holds_one_protocol():
    assert tasks.one_column(["pope@lmms", "pope@lmms"]) == "pope@lmms"
    with pytest.raises(UserError, match="pope@lmms and pope@mean-f1 are two protocols of one benchmark"):
        tasks.one_column(["pope@mean-f1", "pope@lmms"])
    with pytest.raises(UserError, match="got gqa@llava, pope@lmms"):
        tasks.one_column(["pope@lmms", "gqa@llava"])
    with pytest.raises(UserError, match="got none"):
        tasks.one_column([])
