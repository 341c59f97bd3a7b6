"""What sources report, as checked data, and the paper's tables that stand it beside what a run measured."""

import csv
import re
import shutil
from pathlib import Path

import official
import pandas as pd
import pytest
import simulate
import yaml

from harness.base import UserError, digest, parse, read_json, write_json
from reports import escape, frames, layout, markup, paper_facts, tables
from reports.build import build
from reports.measures import Estimates
from reports.tables import Layout, layouts
from students.recipe import parse as parse_recipe

STUDENTS = [
    "ce",
    "cosine_probs",
    "ce+fkl@manual",
    "ce+fkl@instance",
    "ce+js@manual",
    "ce+js@task",
    "ce+cosine_probs@fixed",
    "ce+cosine_probs@instance",
    "ce+fd+fkl@instance",
    "ce+align_kd@fixed",
    "ce+llava_kd@instance",
]
PAPER = [f"paper-{k}" for k in paper_facts.TABLES]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate.write_run(tmp_path_factory.mktemp("paper") / "run", seeds=(0, 1), clusters=21, steps=6, students=STUDENTS)


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    """The papers' protocols, a MobileLLaMA base, two seeds. Read only."""
    return official.write(simulated, tmp_path_factory.mktemp("paper") / "official")


@pytest.fixture(scope="module")
def estimates(run):
    return Estimates(frames.load(run), resamples=200)


def table(name, estimates):
    return tables.build(name, layouts([name])[name], estimates)


def cells(made, student, column):
    """A student's cells whose column's head starts with ``column``: measured, reported, difference."""
    k = next(k for k, c in enumerate(made.columns) if c.label == column)
    return next(row.cells[k : k + 3] for row in made.rows if row.label == student)


# ---- the data --------------------------------------------------------------------------------------------------------------


def test_every_collected_row_is_kept_word_for_word():
    with paper_facts.FILE.open(encoding="utf-8", newline="") as file:
        rows = [[r[k] for k in ("section", "row", "column", "value", "source")] for r in csv.DictReader(file)]
    assert len(rows) == 246
    assert digest(rows) == "f1faca67e49ec79772d1baadf257aa9834b0caee9df7022340db4a48c67cb0d4"


def test_students_are_recipes_in_their_one_spelling():
    for fact in paper_facts.facts():
        for name in [fact.student] * (fact.kind != "given") + [fact.minus]:
            assert not name or parse_recipe(name).name == name


def test_every_table_has_values_and_contradictions_are_all_there():
    for number in paper_facts.TABLES:
        assert any(f.kind == "value" for f in paper_facts.of_table(number))
    values = {
        f.value
        for f in paper_facts.of_table(4)
        if (f.kind, f.student, f.measure) == ("value", "ce+cosine_probs@instance", "average@papers")
    }
    assert values == {"65.5", "65.3"}


def broken(tmp_path, change):
    with paper_facts.FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:8]
    rows = change(rows) or rows
    path = tmp_path / "reported.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rename(old, new):
    return lambda rows: [{(new if k == old else k): v for k, v in row.items()} for row in rows]


def put(line, **values):
    return lambda rows: rows[line].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename("measure", "mesure"), "unknown column 'mesure'. Did you mean 'measure'"),
        (lambda rows: [{k: v for k, v in row.items() if k != "kind"} for row in rows], r"lacks the column\(s\) kind"),
        (put(2, measure="scienceqa@al"), "line 4.*Did you mean 'scienceqa@all'"),
        (put(2, kind="valeu"), "line 4: field 'kind'"),
        (put(2, value="many"), "line 4.*'many' is no number"),
        (put(2, table="7"), "line 4.*known: 1 to 6"),
        (put(2, student=""), "line 4.*needs table, student and measure together"),
        (put(2, minus="ce"), "line 4.*minus is for kinds delta and sign"),
        (lambda rows: [*rows, rows[0]], "line 10: the same row stands there twice"),
    ],
)
def test_a_wrong_file_of_facts_is_one_line_that_names_the_place(tmp_path, change, said):
    with pytest.raises(UserError, match=said) as caught:
        paper_facts.facts(broken(tmp_path, change))
    assert "reported.csv" in str(caught.value)


# ---- layouts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"papr": 2}, "Did you mean 'paper'"),
        ({"paper": 9}, "tables are 1 to 6"),
        ({"measures": ["scienceqa@ll"]}, "Did you mean 'scienceqa@all'"),
        ({"mean": True}, "mean does not concern a table of the paper"),
        ({"beside": "row"}, "beside"),
        ({"measures": ["gqa@llava", "gqa@lmms"]}, "two protocols of one benchmark"),
    ],
)
def test_a_wrong_paper_layout_is_one_clear_error(change, complaint):
    good = {"title": "t", "caption": "c", "order": 1, "paper": 2, "measures": ["scienceqa@all"]}
    parse(Layout, good, "good.yaml")
    with pytest.raises(UserError, match=f"bad.yaml.*{complaint}"):
        parse(Layout, good | change, "bad.yaml")


@pytest.mark.parametrize(("field", "value"), [("beside", "rows"), ("base", "*"), ("setting", "s")])
def test_what_is_for_the_paper_is_refused_elsewhere(field, value):
    other = {"title": "t", "caption": "c", "order": 1, "measures": ["score"], field: value}
    with pytest.raises(UserError, match=f"{field} is for tables of the paper"):
        parse(Layout, other, "other.yaml")


@pytest.mark.parametrize(
    ("student", "globs", "expected"),
    [
        ("ce", ("*",), True),
        ("ce+fkl@task", ("ce", "*"), True),
        ("ce+fkl@task", ("*",), False),
        ("fkl+rkl@task", ("ce", "*"), False),
        ("ce+fd+fkl@task", ("ce", "fd", "*"), True),
        ("ce+cosine_probs+fd@task", ("ce", "fd", "*"), True),
        ("ce+fkl+rkl@task", ("ce", "fd", "*"), False),
        ("ce+fkl+rkl@task", (), True),
    ],
)
def test_channels_pick_recipes(student, globs, expected):
    assert layout.has_channels(student, globs) is expected


def test_protocols_pick_columns(estimates, monkeypatch, tmp_path):
    own = {"title": "t", "caption": "c", "order": 1, "measures": ["score"], "protocols": ["scienceqa@*"], "students": ["ce"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    monkeypatch.setattr(layout, "FOLDER", tmp_path)
    assert [c.label for c in table("mine", estimates).columns] == ["ScienceQA", "ScienceQA-IMG"]
    with pytest.raises(UserError, match="means are over all protocols"):
        parse(Layout, own | {"mean": True}, "mine.yaml")


# ---- the tables ------------------------------------------------------------------------------------------------------------


def test_measured_reported_and_difference_stand_side_by_side(estimates):
    made = table("paper-1", estimates)
    measured, reported, difference = cells(made, "ce", "ScienceQA")
    protocol = next(p for p in estimates.run.protocols if p.name == "scienceqa@all")
    expected = estimates.interval("ce", "score", protocol)
    assert (measured.value, measured.low, measured.high) == (expected.value, expected.low, expected.high)
    assert reported.text == "48.4ᵃᵇ" and reported.span is None
    assert difference.value == pytest.approx(expected.value - 48.4)
    assert difference.high - difference.low == pytest.approx(expected.high - expected.low)
    assert "ᵃ reading note A." in made.notes and "ᵇ reading note C." in made.notes
    assert next(row for row in made.rows if row.label == "ce").seeds == "2"


def test_what_was_not_run_is_a_dash_and_never_a_zero(estimates):
    made = table("paper-1", estimates)
    measured, reported, difference = cells(made, "mse_logits", "ScienceQA")
    assert measured is None and difference is None and reported.text.startswith("45.9")
    line = next(line for line in markup.markdown_table(made).splitlines() if "`mse_logits`" in line)
    assert line.count("–") == 3  # seeds, measured, difference


def test_contradicting_sources_are_all_shown_each_with_its_note_and_difference(estimates):
    made = table("paper-2", estimates)
    _, reported, _ = cells(made, "ce+js@task", "ScienceQA")
    assert reported.text.startswith("50.5") and reported.reported[0].source == "papernotes reading note"
    measured, reported, difference = cells(made, "ce+cosine_probs@instance", "ScienceQA")
    assert re.fullmatch(r"54\.9[ᵃ-ᶻ] / 53\.1[ᵃ-ᶻ]", reported.text)
    assert difference.value == pytest.approx(measured.value - 54.9)
    assert difference.detail[0].startswith(f"{measured.value - 53.1:+.1f}")
    assert any("contradicts reading note A 54.9" in note for note in made.notes)
    _, reported, _ = cells(made, "ce+js@manual", "ScienceQA-IMG")
    assert "56.3–56.4" in reported.text  # a range is shown as it is printed, and nothing is subtracted from it


def test_the_average_is_the_papers_and_needs_all_six(estimates, run, tmp_path):
    made = table("paper-4", estimates)
    row = next(row for row in made.rows if row.label == "ce" and row.about == "measured")
    parts = dict(zip([c.label for c in made.columns], [c.value for c in row.cells], strict=True))
    names = ("GQA", "TextVQA", "POPE", "MMBench", "ScienceQA-IMG")
    assert row.cells[-1].value == pytest.approx((sum(parts[n] for n in names) + parts["MME-P"] / 20) / 6)
    copy = tmp_path / "five"
    shutil.copytree(run, copy)
    scores = pd.read_parquet(copy / "scores.parquet")
    scores[scores["protocol"] != "gqa@llava"].to_parquet(copy / "scores.parquet")
    short = table("paper-4", Estimates(frames.load(copy), resamples=50))
    assert next(row for row in short.rows if row.label == "ce").cells[-1] is None


def test_paper_rows_stand_first_and_own_students_follow(estimates):
    labels = [row.label for row in table("paper-1", estimates).rows]
    assert labels == ["ce", "cosine_probs", "cosine_logits", "mse_logits"]
    labels = list(dict.fromkeys(row.label for row in table("paper-4", estimates).rows))
    assert labels[:2] == ["mobilevlm-v2-1.7b", "ce"]
    assert "ce+align_kd@instance" in labels and "ce+fkl@manual" not in labels


def test_deltas_signs_and_loose_facts_are_notes(estimates):
    notes = " ".join(table("paper-3", estimates).notes)
    assert "`ce+fd+mse_probs@instance` − `ce+fd+mse_probs@manual` on scienceqa@all: negative" in notes
    assert "+0.3 (arxlens" in notes
    assert "Standard KD, ScienceQA acc: ~46" in " ".join(table("paper-1", estimates).notes)


def test_another_base_model_is_not_put_beside_the_papers(estimates, simulated, tmp_path):
    made = table("paper-5", estimates)
    assert not any(c.label == "reported" for c in made.columns)
    assert any("which does not match *qwen*" in note for note in made.notes)
    qwen = official.write(simulated, tmp_path / "qwen", model="Zhang199/TinyLLaVA-Qwen2.5-0.5B")
    found = Estimates(frames.load(qwen), resamples=50)
    assert any(c.label == "reported" for c in table("paper-5", found).columns)
    assert not any(c.label == "reported" for c in table("paper-1", found).columns)


@pytest.mark.parametrize("name", PAPER)
def test_miniature_numbers_never_stand_beside_reported_ones(simulated, name):
    try:
        made = table(name, Estimates(frames.load(simulated), resamples=50))
    except frames.Missing as missing:
        assert "holds none of the numbers" in str(missing)
        return
    assert made.title.endswith("(miniature suite)")
    assert not any(c.label in ("reported", "difference") for c in made.columns)
    assert sum(note.startswith("Measured only") for note in made.notes) == 1
    assert not any(c and c.what != "measured" for row in made.rows for c in row.cells)


@pytest.mark.parametrize(("field", "value", "said"), [("limit", 5, "first 5 clusters"), ("rows", 3, "only part of")])
def test_part_of_a_benchmark_is_not_put_beside_the_whole(simulated, tmp_path, field, value, said):
    folder = official.write(simulated, tmp_path / "part")
    manifest = read_json(folder / "manifest.json")
    if field == "limit":
        manifest["limit"] = value
    else:
        manifest["protocols"]["gqa@llava"] |= {"rows": value, "expected_rows": 12578}
    write_json(folder / "manifest.json", manifest)
    made = table("paper-2", Estimates(frames.load(folder), resamples=50))
    assert not any(c.label == "reported" for c in made.columns)
    assert any(said in note for note in made.notes)


def test_efficiency_is_read_from_the_trainings(simulated, run, tmp_path):
    made = table("paper-6", Estimates(frames.load(run), resamples=50))
    measured, reported, difference = cells(made, "ce+align_kd@fixed", "Speed")
    assert measured.value == pytest.approx(10.0)  # the simulator's steps take 0.1 s
    assert reported.value == 1.82 and difference.value == pytest.approx(8.18) and difference.span is None
    memory, *_ = cells(made, "ce+align_kd@fixed", "Peak memory")
    assert memory.value == pytest.approx(2**30 / 1e9)
    assert cells(made, "ce+align_kd@fixed", "Weighting")[0] is None  # the simulator leaves no checkpoint


def test_the_size_of_a_weighting_is_read_from_headers_alone(simulated, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    folder = official.write(simulated, tmp_path / "sized")
    place = folder / "students" / "ce+align_kd@fixed" / "seed0"
    (place / "student").mkdir()
    save_file({"a": np.zeros((10, 20), np.float32), "b": np.zeros(100, np.float32)}, place / "student" / "model.safetensors")
    save_file({"w": np.zeros((3,), np.float32)}, place / "weighting.safetensors")
    made = table("paper-6", Estimates(frames.load(folder), resamples=50))
    assert cells(made, "ce+align_kd@fixed", "Weighting")[0].value == pytest.approx(1.0)
    whole = (place / "weighting.safetensors").read_bytes()
    (place / "weighting.safetensors").write_bytes(whole[:20])
    with pytest.raises(UserError, match=r"weighting\.safetensors is damaged"):
        table("paper-6", Estimates(frames.load(folder), resamples=50))


def test_csv_holds_every_value_at_full_precision_with_its_source(estimates, run):
    frame = table("paper-4", estimates).frame()
    found = frame[(frame["student"] == "ce+cosine_probs@instance") & (frame["protocol"] == "average@papers")]
    assert list(found["what"]) == ["measured", "reported", "reported", "measured - reported", "measured - reported"]
    measured, first, second, to_first, to_second = found["value"]
    assert (first, second) == (65.5, 65.3)
    assert to_first == measured - 65.5 and to_second == pytest.approx(measured - 65.3, abs=1e-12)
    assert found["low"].iloc[4] - found["value"].iloc[4] == pytest.approx(found["low"].iloc[0] - measured)
    own = found.iloc[0]
    assert (own["run"], own["manifest_digest"], own["commit"]) == ("official", frames.load(run).digest, "0" * 40)
    assert pd.isna(found.iloc[1]["run"]) and "secondary summary B" in found.iloc[1]["source"]
    gqa = frame[(frame["student"] == "ce") & (frame["protocol"] == "gqa@llava")].iloc[0]
    assert gqa["protocol_version"] == 1


def test_every_table_says_where_it_comes_from(estimates, run):
    line = f"Run `official`, manifest {frames.load(run).digest[:16]}, harness 000000000000."
    for name in ("accuracy", "cost", "paper-1", "paper-4", "paper-6"):
        assert table(name, estimates).notes[-1] == line


def test_given_models_alone_have_no_paper_table_unless_asked(run, tmp_path, unsaved):
    folder = _given(run, tmp_path / "given")
    build(folder, formats=("md",), resamples=50)
    text = (folder / "report" / "report.md").read_text()
    assert "The paper's Table" not in text
    build(folder, formats=("md",), layouts=["paper-4"], resamples=50)
    assert "Nothing was trained in this run." in (folder / "report" / "report.md").read_text()


def _given(run, folder):
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "students")
    for name in ("scores.parquet", "diagnostics.parquet"):
        frame = pd.read_parquet(folder / name)
        frame[frame["student"].isin(["teacher", "base"])].to_parquet(folder / name)
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | {"students": [], "seeds": []})
    return folder


def test_a_given_model_of_the_paper_is_measured_beside_its_number(run, tmp_path):
    folder = _given(run, tmp_path / "given")
    scores = pd.read_parquet(folder / "scores.parquet")
    own = scores[scores["student"] == "base"].assign(student="mobilevlm-v2-1.7b", kind="external")
    pd.concat([scores, own]).to_parquet(folder / "scores.parquet")
    made = table("paper-4", Estimates(frames.load(folder), resamples=50))
    rows = [row for row in made.rows if row.label == "mobilevlm-v2-1.7b"]
    assert [row.about for row in rows] == ["measured", "reported", "measured − reported"]
    assert all(row.block == "given" for row in rows)


def test_footnotes_run_out_loudly():
    notes = paper_facts.Footnotes()
    for k in range(len(escape.LETTERS)):
        notes.letter(str(k))
    with pytest.raises(UserError, match="more than 25 footnotes"):
        notes.letter("one more")


def test_the_layout_that_the_documentation_shows_works(estimates, monkeypatch, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n# reports/layouts/entropy\.yaml\n(.+?)```", text, re.DOTALL)
    (tmp_path / "entropy.yaml").write_text(example.replace('"@fixed"', '"@manual"'))
    monkeypatch.setattr(layout, "FOLDER", tmp_path)
    made = table("entropy", estimates)
    assert [row.label for row in made.rows] == ["ce+fkl@instance", "ce+js@task"] and {c.name for c in made.columns} == {
        "entropy"
    }


def test_the_documentation_names_every_kind_and_table():
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
    for kind in {fact.kind for fact in paper_facts.facts()}:
        assert f"`{kind}`" in text, kind
    assert set(PAPER) <= set(layouts()) and all(f"--layout {name}" in text for name in PAPER)
