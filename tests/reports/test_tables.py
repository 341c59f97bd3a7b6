"""Tables: what a layout may say, which cells stand where, what is marked, what is written under them."""

import math

import numpy as np
import pandas as pd
import pytest
import simulate
import yaml

from harness.base import UserError, parse
from reports import frames, page, tables
from reports.frames import Irrelevant
from reports.measures import Estimates
from reports.tables import Layout, counterpart, layouts


@pytest.fixture(scope="module")
def estimates(whole_run):
    return Estimates(frames.load(whole_run), resamples=400)


@pytest.fixture(scope="module")
def accuracy(estimates):
    return tables.build("accuracy", layouts()["accuracy"], estimates)


def test_every_layout_builds(estimates):
    for name, layout in concerned(estimates):
        assert tables.build(name, layout, estimates).rows


def concerned(estimates):
    """Layouts that have something to show in this run, which holds no manual weighting and no planted truth."""
    out = []
    for name, layout in layouts().items():
        try:
            tables.build(name, layout, estimates)
        except Irrelevant:
            assert name in ("planted-truth", "planted-detection", "difference-manual", "likelihood-manual")
        else:
            out.append((name, layout))
    return out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"measures": ["scoer"]}, "Did you mean 'score'"),
        ({"colums": "protocols"}, "Did you mean 'columns'"),
        ({"measures": ["nll", "teacher_kl"]}, "shows one measure"),
        ({"mean": True}, "cannot be averaged"),
        ({"measures": ["nll"], "references": ["chance"]}, "references exist for scores only"),
        ({"references": ["luck"]}, "references"),
        ({"order": "first"}, "order"),
    ],
)
def test_a_wrong_layout_is_one_clear_error(change, complaint):
    good = {"title": "t", "caption": "c", "order": 1, "measures": ["score"]}
    parse(Layout, good, "good.yaml")
    with pytest.raises(UserError, match=complaint):
        parse(Layout, good | change, "bad.yaml")


def test_an_unknown_layout_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        layouts(["acuracy"])


def test_a_new_layout_is_one_file(estimates, monkeypatch, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"title": "Entropy", "caption": "Mine.", "order": 1, "measures": ["entropy"], "students": ["ce+fkl@*"]})
    )
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    table = tables.build("mine", layouts()["mine"], estimates)
    assert [row.label for row in table.rows] == [s for s in simulate.STUDENTS if s.startswith("ce+fkl@")]


def test_rows_of_the_main_table(accuracy):
    labels = [row.label for row in accuracy.rows]
    assert labels == ["random guessing", "best constant answer", "teacher", "base", *simulate.STUDENTS]
    assert [row.seeds for row in accuracy.rows] == ["–"] * 4 + ["1"] * len(simulate.STUDENTS)
    assert len(accuracy.columns) == 6
    assert "miniature" in accuracy.title
    assert any("training variation is unmeasured" in note for note in accuracy.notes)


def test_cells_hold_the_frames_numbers(accuracy, whole_run):
    scores = pd.read_parquet(whole_run / "scores.parquet")
    for row in accuracy.rows[2:]:
        for column, cell in zip(accuracy.columns, row.cells, strict=True):
            own = scores[(scores["student"] == row.label) & (scores["protocol"] == column.protocol.name)]["score"]
            if column.protocol.aggregation == "mean":
                assert cell.value == pytest.approx(100 * own.mean())
            assert cell.low <= cell.value <= cell.high
            assert f"n = {cell.estimate.n:,}" in column.under


def test_chance_is_a_dash_where_there_is_none(accuracy):
    for column, cell in zip(accuracy.columns, accuracy.rows[0].cells, strict=True):
        assert (cell is None) == (column.protocol.chance is None)
        assert cell is None or (cell.value == column.protocol.chance and cell.span is None)


def test_the_mark_is_the_best_and_all_not_resolved_from_it(accuracy, estimates):
    students = accuracy.rows[4:]
    for k, column in enumerate(accuracy.columns):
        marked = {row.label for row in students if row.cells[k].marked}
        best = max(students, key=lambda row: row.cells[k].value).label
        assert best in marked
        for row in students:
            found = estimates.difference(best, row.label, "score", column.protocol)
            assert (row.label in marked) == (row.label == best or not found.resolved)
        assert not any(row.cells[k].marked for row in accuracy.rows[:4] if row.cells[k])


def test_a_clear_winner_is_marked_alone(run_copy):
    path = run_copy / "scores.parquet"
    scores = pd.read_parquet(path)
    students = scores["kind"] == "student"
    scores.loc[students, "score"] = 0.0
    scores.loc[students & (scores["student"] == "fkl"), "score"] = 1.0
    scores.to_parquet(path)
    table = tables.build("accuracy", layouts()["accuracy"], Estimates(frames.load(run_copy), resamples=200))
    gqa = [c.protocol.name for c in table.columns].index("gqa@miniature")
    assert [row.label for row in table.rows if row.cells[gqa] and row.cells[gqa].marked] == ["fkl"]


def test_lower_is_better_for_likelihood(estimates):
    table = tables.build("likelihood", layouts()["likelihood"], estimates)
    students = [row for row in table.rows if row.kind == "student"]
    assert min(students, key=lambda row: row.cells[0].value).cells[0].marked


@pytest.mark.parametrize(
    ("student", "minus", "expected"),
    [
        ("ce+fkl@task", "@fixed", "ce+fkl@fixed"),
        ("ce+fkl@fixed@lambda4", "@fixed", "ce+fkl@fixed"),
        ("ce+fkl@fixed", "@fixed", None),
        ("fkl", "@fixed", None),
        ("ce", "ce", None),
        ("fkl", "ce", "ce"),
        ("ce+rkl@task", "@fixed", None),
    ],
)
def test_whom_a_student_is_compared_with(student, minus, expected):
    assert counterpart(student, minus, simulate.STUDENTS) == expected


def test_difference_table_subtracts_the_printed_students(estimates):
    table = tables.build("difference-fixed", layouts()["difference-fixed"], estimates)
    assert {row.label for row in table.rows} == {
        s for s in simulate.STUDENTS if "@" in s and s not in ("ce+fkl@fixed", "ce+cosine_probs@fixed")
    }
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            values = [estimates.interval(s, "score", column.protocol).value for s in (row.label, row.minus)]
            assert cell.value == pytest.approx(values[0] - values[1])
            assert cell.marked == cell.estimate.resolved


def test_a_student_without_scores_keeps_its_row_of_dashes(run_copy):
    path = run_copy / "scores.parquet"
    scores = pd.read_parquet(path)
    scores[scores["student"] != "fkl"].to_parquet(path)
    table = tables.build("accuracy", layouts()["accuracy"], Estimates(frames.load(run_copy), resamples=100))
    row = next(row for row in table.rows if row.label == "fkl")
    assert all(cell is None for cell in row.cells)
    assert "`fkl`" in page.markdown_table(table)


def test_csv_has_full_precision_and_the_facts(accuracy):
    frame = accuracy.frame()
    cell = accuracy.rows[3].cells[1]
    line = frame[(frame["student"] == "base") & (frame["protocol"] == "gqa@miniature")].iloc[0]
    assert (line["value"], line["low"], line["high"]) == (cell.value, cell.low, cell.high)
    assert line["n"] == cell.estimate.n
    assert line["protocol_version"] == 1


# ---- formats ---------------------------------------------------------------------------------------------------------------


def test_markdown_aligns_in_the_raw_text(accuracy):
    lines = page.markdown_table(accuracy).splitlines()
    bars = [[k for k, c in enumerate(line) if c == "|"] for line in lines]
    assert all(b == bars[0] for b in bars)
    assert len(lines) == len(accuracy.rows) + 3


def test_signs_and_zero_are_printed_without_a_false_direction():
    shown = [tables.Cell(v, None, None, 1, signed=True).text for v in (-0.04, 0.04, -1.25, 3.0)]
    assert shown == ["0.0", "0.0", "−1.2", "+3.0"]


@pytest.mark.parametrize("name", ["a_b&c%$#{}~^\\", 'x"<script>|`*['])
def test_every_name_is_escaped(name):
    latex = page.tex(name)
    unescaped = [c for k, c in enumerate(latex) if c in "&%$#_" and latex[k - 1] != "\\"]
    assert not unescaped
    assert "<script>" not in page.prose_html(f"see `{name}`")
    assert "|" not in page.markdown(name).replace("\\|", "")


def test_a_missing_number_is_never_nan_in_print(estimates):
    for name, layout in concerned(estimates):
        table = tables.build(name, layout, estimates)
        assert "nan" not in page.markdown_table(table).lower()
        assert all(math.isfinite(c.value) for row in table.rows for c in row.cells if c)


def test_multiple_seeds_are_counted(tmp_path):
    run = frames.load(
        simulate.write_run(tmp_path / "run", seeds=(0, 1), clusters=14, students=["ce", "ce+fkl@fixed"], steps=10)
    )
    table = tables.build("accuracy", layouts()["accuracy"], Estimates(run, resamples=100))
    assert [row.seeds for row in table.rows if row.kind == "student"] == ["2", "2"]
    assert not any("unmeasured" in note for note in table.notes)
    assert any("2 seeds" in note for note in table.notes)
    assert any("only 14 clusters" in note for note in table.notes)
    assert np.isfinite(table.frame()["value"]).all()
