"""Tables: what a layout may say, which cells stand where, what is marked, what is written under them."""

import math

import numpy as np
import pandas as pd
import pytest
import simulate
import yaml

from harness.base import UserError, parse, read_json, write_json
from reports import escape, frames, markup, notes, statistics, tables
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
        except frames.Missing:
            assert name in ("paper-3", "paper-5")  # nothing was trained with features, or with llava_kd
        else:
            out.append((name, layout))
    return out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"measures": ["scoer"]}, "Did you mean 'score'"),
        ({"colums": "protocols"}, "Did you mean 'columns'"),
        ({"measures": ["nll", "teacher_kl"]}, "shows one measure"),
        ({"columns": "measures"}, "have a unit per benchmark"),
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
    monkeypatch.setattr("reports.layout.FOLDER", tmp_path)
    table = tables.build("mine", layouts()["mine"], estimates)
    assert [row.label for row in table.rows] == [s for s in simulate.STUDENTS if s.startswith("ce+fkl@")]


def test_rows_of_the_main_table(accuracy):
    labels = [row.label for row in accuracy.rows]
    assert labels == ["random guessing", "best constant answer", "teacher", "base", *simulate.STUDENTS]
    assert [row.seeds for row in accuracy.rows] == ["–"] * 4 + ["1"] * len(simulate.STUDENTS)
    assert [c.label for c in accuracy.columns][-1] == "Average"
    assert len(accuracy.columns) == 7
    assert "miniature" in accuracy.title
    assert any("training variation is unmeasured" in note for note in accuracy.notes)


def test_cells_hold_the_frames_numbers(accuracy, whole_run):
    scores = pd.read_parquet(whole_run / "scores.parquet")
    for row in accuracy.rows[2:]:
        for column, cell in zip(accuracy.columns, row.cells, strict=True):
            if column.protocol is None:
                continue
            own = scores[(scores["student"] == row.label) & (scores["protocol"] == column.protocol.name)]["score"]
            if column.protocol.aggregation == "mean":
                assert cell.value == pytest.approx(100 * own.mean())
            assert cell.low <= cell.value <= cell.high
            assert f"n = {cell.estimate.n:,}" in column.under


def test_chance_is_a_dash_where_there_is_none(accuracy):
    assert accuracy.rows[0].cells[-1] is None  # an average of what is not there is not there
    for column, cell in zip(accuracy.columns[:-1], accuracy.rows[0].cells[:-1], strict=True):
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
    gqa = [c.protocol.name for c in table.columns if c.protocol].index("gqa@miniature")
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
    assert "`fkl`" in markup.markdown_table(table)


def test_csv_has_full_precision_and_the_facts(accuracy):
    frame = accuracy.frame()
    cell = accuracy.rows[3].cells[1]
    line = frame[(frame["student"] == "base") & (frame["protocol"] == "gqa@miniature")].iloc[0]
    assert (line["value"], line["low"], line["high"]) == (cell.value, cell.low, cell.high)
    assert line["n"] == cell.estimate.n
    assert line["protocol_version"] == 1


# ---- formats ---------------------------------------------------------------------------------------------------------------


def test_markdown_aligns_in_the_raw_text(accuracy):
    lines = markup.markdown_table(accuracy).splitlines()
    bars = [[k for k, c in enumerate(line) if c == "|"] for line in lines]
    assert all(b == bars[0] for b in bars)
    assert len(lines) == len(accuracy.rows) + 3


def test_signs_and_zero_are_printed_without_a_false_direction():
    shown = [tables.Cell(v, None, None, 1, signed=True).text for v in (-0.04, 0.04, -1.25, 3.0)]
    assert shown == ["0.0", "0.0", "−1.2", "+3.0"]


@pytest.mark.parametrize("name", ["a_b&c%$#{}~^\\", 'x"<script>|`*['])
def test_every_name_is_escaped(name):
    latex = escape.tex(name)
    unescaped = [c for k, c in enumerate(latex) if c in "&%$#_" and latex[k - 1] != "\\"]
    assert not unescaped
    assert "<script>" not in escape.prose_html(f"see `{name}`")
    assert "|" not in escape.markdown(name).replace("\\|", "")


def test_a_missing_number_is_never_nan_in_print(estimates):
    for name, layout in concerned(estimates):
        table = tables.build(name, layout, estimates)
        assert "nan" not in markup.markdown_table(table).lower()
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


def test_the_average_is_of_percent_of_range(accuracy):
    """MME's points over their maximum: on the papers' six benchmarks that is the papers' average."""
    for row in accuracy.rows[2:]:
        parts = [
            100 * cell.value / c.protocol.range[1] for c, cell in zip(accuracy.columns, row.cells, strict=True) if c.protocol
        ]
        assert row.cells[-1].value == pytest.approx(np.mean(parts))
        assert row.cells[-1].low < row.cells[-1].value < row.cells[-1].high
        assert row.cells[-1].estimate.clusters == sum(c.estimate.clusters for c in row.cells[:-1])


def test_a_difference_says_its_test_correction_and_what_it_could_have_detected(estimates):
    table = tables.build("difference-fixed", layouts()["difference-fixed"], estimates)
    notes = " ".join(table.notes)
    assert "McNemar" in notes and "Holm" in notes and "80 % power" in notes and "400 resamples" in notes
    frame = table.frame()
    for row in table.rows:
        own = frame[(frame["student"] == row.label) & frame["protocol"].str.contains("@")]
        assert list(own["p_holm"]) == pytest.approx(statistics.holm(list(own["p"])))
        assert (own["resolved"] == (own["p_holm"] <= 0.05)).all()
        assert (own["holm_family"] == 6).all()
        for cell in row.cells:
            assert cell.detail[0] == f"+{cell.estimate.above} −{cell.estimate.below}"
            assert cell.detail[1].startswith("detects ") and cell.estimate.detectable > 2 * cell.estimate.se


def test_calibration_is_the_definition(estimates, whole_run):
    scores = pd.read_parquet(whole_run / "scores.parquet")
    said = pd.read_parquet(whole_run / "diagnostics.parquet")
    protocol = estimates.run.protocols[0]
    own = scores[(scores["student"] == "fkl") & (scores["protocol"] == protocol.name)]
    both = own.merge(said[(said["student"] == "fkl") & (said["protocol"] == protocol.name)], on="id")
    which = np.ceil(both["confidence"] * 15)
    gaps = [len(b) * abs(b["confidence"].mean() - b["score"].mean()) for _, b in both.groupby(which)]
    found = estimates.interval("fkl", "ece", protocol)
    assert found.value == pytest.approx(sum(gaps) / len(both))
    assert 0 <= found.low < found.high <= 1


def test_no_interval_leaves_what_the_number_can_be(tmp_path):
    run = simulate.write_run(tmp_path / "run", seeds=(0, 1), clusters=14, students=["ce", "ce+fkl@fixed"], steps=10)
    scores = pd.read_parquet(run / "scores.parquet")
    scores["score"] = scores["score"].where(scores["seed"] != 0, 1.0)  # two trainings far apart: a wide interval
    scores.to_parquet(run / "scores.parquet")
    made = Estimates(frames.load(run), resamples=200)
    for protocol in made.run.protocols:
        if protocol.aggregation == "mean":
            found = made.interval("ce", "score", protocol)
            assert 0.0 <= found.low < found.high <= 100.0
            assert found.training_sd > 5


def test_costs_are_medians_over_seeds_and_an_older_run_says_so(tmp_path, small_copy):
    run = simulate.write_run(tmp_path / "run", seeds=(0, 1, 2), clusters=14, students=["ce"], steps=10)
    for seed, seconds in enumerate((5.0, 100.0, 7.0)):
        path = run / "students" / "ce" / f"seed{seed}" / "cost.json"
        write_json(path, read_json(path) | {"seconds": seconds})
    table = tables.build("cost", layouts()["cost"], Estimates(frames.load(run), resamples=50))
    assert [cell.text for cell in table.rows[0].cells] == ["7.0", "1.00", "320", "0", "600"]
    assert table.rows[0].seeds == "3"
    for path in small_copy.glob("students/*/seed0/cost.json"):
        path.unlink()
    with pytest.raises(frames.Missing, match="did not record their cost"):
        tables.build("cost", layouts()["cost"], Estimates(frames.load(small_copy), resamples=50))


def test_whom_weights_trust_is_a_table_too(estimates):
    table = tables.build("weights-trust", layouts()["weights-trust"], estimates)
    assert [row.label for row in table.rows] == [s for s in simulate.STUDENTS if s.endswith("@instance")]
    assert all(row.cells[0].value > 0.5 and row.cells[0].marked for row in table.rows)  # planted by the simulator
    assert not any(row.cells[1].value > 0.65 for row in table.rows)


def test_resamples_are_named_only_where_something_was_resampled(estimates):
    assert notes.brackets({"Wilson"}, estimates) == "Brackets: 95 % interval (Wilson)"
    both = notes.brackets({"Wilson", "BCa cluster bootstrap"}, estimates)
    assert both == "Brackets: 95 % interval (BCa cluster bootstrap or Wilson), 400 resamples of clusters"
    assert "none could be made" in notes.brackets({"none"}, estimates)
