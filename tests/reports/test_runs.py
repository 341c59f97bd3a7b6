"""Several runs in one report: who stands beside whom, what is refused, and how the same student differs."""

import json
import re
import shutil

import official
import pandas as pd
import pytest
import simulate
from typer.testing import CliRunner

from harness import report as command
from harness.base import UserError, read_json, write_json
from reports import frames, markup, runs, runs_apart, tables
from reports.build import build
from reports.measures import Estimates

STUDENTS = ["ce", "ce+fkl@fixed", "ce+fkl@instance"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs that differ in what `ce` answers on GQA, the second without a student. Read only."""
    root = tmp_path_factory.mktemp("runs")
    first = simulate.write_run(root / "monday", seeds=(0, 1), clusters=21, steps=6, students=STUDENTS)
    second = root / "tuesday"
    shutil.copytree(first, second)
    shutil.rmtree(second / "students" / STUDENTS[2])
    for name in ("scores.parquet", "diagnostics.parquet"):
        frame = pd.read_parquet(second / name)
        frame = frame[frame["student"] != STUDENTS[2]].reset_index(drop=True)
        if name == "scores.parquet":
            frame.loc[(frame["protocol"] == "gqa@miniature") & (frame["student"] == "ce"), "score"] = 1.0
        frame.to_parquet(second / name)
    manifest(second, students=STUDENTS[:2])
    return first, second


@pytest.fixture(scope="module")
def made(pair):
    return [Estimates(run, resamples=800) for run in runs.load(pair)]


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without figures: drawing them takes most of the time."""
    monkeypatch.setattr("reports.drawn.drawings", list)


def manifest(folder, **changes):
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | changes)


# ---- what may stand side by side -------------------------------------------------------------------------------------------


def test_runs_are_told_apart_by_the_shortest_end_of_their_paths(pair, tmp_path):
    assert [run.name for run in runs.load(pair)] == ["monday", "tuesday"]
    other = tmp_path / "elsewhere" / "monday"
    shutil.copytree(pair[0], other)
    names = [run.name for run in runs.load([pair[0], other])]
    assert names == [f"{pair[0].parent.name}/monday", "elsewhere/monday"]


def test_a_run_twice_is_refused(pair):
    with pytest.raises(UserError, match="given twice"):
        runs.load([pair[0], pair[0]])


def test_two_versions_of_a_protocol_are_refused_naming_both(pair, tmp_path):
    other = tmp_path / "older"
    shutil.copytree(pair[0], other)
    protocols = read_json(other / "manifest.json")["protocols"]
    protocols["gqa@miniature"]["version"] = 7
    manifest(other, protocols=protocols)
    with pytest.raises(UserError, match=r"monday was scored under gqa@miniature version 1 and older under version 7"):
        build([pair[0], other])


def test_miniature_never_stands_beside_official(pair, tmp_path):
    real = official.write(pair[0], tmp_path / "real")
    with pytest.raises(UserError, match=r"must not stand in one report.*monday: miniature suite, real: official protocols"):
        build([pair[0], real])


def test_a_folder_that_is_no_run_is_named(pair, tmp_path):
    with pytest.raises(UserError, match="nothing is not a run folder"):
        runs.load([pair[0], tmp_path / "nothing"])


# ---- tables ----------------------------------------------------------------------------------------------------------------


def test_rows_of_a_student_stand_together_and_name_their_run(made):
    found = runs.merge([tables.build("accuracy", tables.layouts(["accuracy"])["accuracy"], e) for e in made])
    rows = [(row.run, row.label) for row in found.rows if row.block == "student"]
    assert rows == [
        ("monday", "ce"), ("tuesday", "ce"), ("monday", "ce+fkl@fixed"), ("tuesday", "ce+fkl@fixed"),
        ("monday", "ce+fkl@instance"),
    ]  # fmt: skip
    assert [row.block for row in found.rows][:8] == ["reference"] * 4 + ["given"] * 4
    lines = markup.markdown_table(found).splitlines()
    assert lines[0].startswith("| run ")
    assert len({tuple(k for k, c in enumerate(line) if c == "|") for line in lines}) == 1
    frame = found.frame()
    assert set(frame["run"]) == {"monday", "tuesday"}
    digests = {e.run.name: e.run.digest for e in made}
    assert all(digests[run] == digest for run, digest in zip(frame["run"], frame["manifest_digest"], strict=True))


def test_numbers_are_those_of_the_single_reports(made):
    layout = tables.layouts(["accuracy"])["accuracy"]
    apart = [tables.build("accuracy", layout, e) for e in made]
    merged = runs.merge(apart)
    for table in apart:
        for row in table.rows:
            assert row.cells == next(r for r in merged.rows if (r.run, r.label) == (row.run, row.label)).cells


def test_a_note_true_of_one_run_alone_names_it(made):
    layout = tables.layouts(["accuracy"])["accuracy"]
    first, second = (tables.build("accuracy", layout, e) for e in made)
    notes = runs.merge([first, second]).notes
    assert notes[-2:] == (first.notes[-1], second.notes[-1])
    for note in notes[:-2]:
        everywhere = note in first.notes and note in second.notes
        assert everywhere or re.match(r"`(monday|tuesday)`: ", note)


def test_a_column_that_one_run_lacks_holds_dashes(pair, tmp_path):
    other = tmp_path / "short"
    shutil.copytree(pair[1], other)
    protocols = read_json(other / "manifest.json")["protocols"]
    del protocols["mme@miniature"]
    manifest(other, protocols=protocols)
    loaded = [Estimates(run, resamples=50) for run in runs.load([pair[0], other])]
    layout = tables.layouts(["accuracy"])["accuracy"]
    merged = runs.merge([tables.build("accuracy", layout, e) for e in loaded])
    k = [c.label for c in merged.columns].index("MME (miniature)")
    cells = {row.run: row.cells[k] for row in merged.rows if row.label == "ce"}
    assert cells["monday"] is not None and cells["short"] is None


# ---- one run against the other ---------------------------------------------------------------------------------------------


def test_the_same_student_is_paired_on_questions_and_not_on_seeds(made):
    a, b = made
    found = runs_apart.differences("ce", a.run.protocols, a, b)
    gqa = next(p for p in a.run.protocols if p.name == "gqa@miniature")
    values = [e.interval("ce", "score", gqa).value for e in made]
    assert found[gqa.name].value == pytest.approx(values[1] - values[0]) and found[gqa.name].resolved
    assert found["pope@miniature"].value == 0.0  # the same answers
    assert found["pope@miniature"].low < 0.0 < found["pope@miniature"].high  # other trainings might have answered otherwise
    same = a.difference("ce", "ce", "score", gqa)
    assert same.low == same.high == 0.0  # within a run a student is itself, seed by seed


def test_the_table_and_the_sentence_of_one_run_against_the_other(made):
    found = runs_apart.build("apart", *made)
    assert found.title == "tuesday minus monday (miniature suite)"
    assert [row.label for row in found.rows] == ["teacher", "base", "ce", "ce+fkl@fixed"]
    assert next(row for row in found.rows if row.label == "ce").seeds == "2:2"
    frame = found.frame()
    assert set(frame["run"]) == {"tuesday"} and set(frame["minus_run"]) == {"monday"}
    (sentence,) = runs_apart.conclusions(*made)
    assert sentence.verdict == "resolved"
    assert "1 resolved above (`ce`), 0 resolved below" in sentence.text


def test_what_else_sets_two_runs_apart_is_said(pair, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    preset = read_json(other / "manifest.json")["preset"]
    preset["data"]["label_noise"] = 0.0
    manifest(other, preset=preset, seeds=[0], git_commit="1" * 40)
    loaded = [Estimates(run, resamples=50) for run in runs.load([pair[0], other])]
    notes = " ".join(runs_apart.build("apart", *loaded).notes)
    assert f"the runs differ in: label_noise 0.0 and 0.25; harness {'1' * 40} and {'0' * 40}." in notes
    assert "One seed in `other`" in notes


def test_other_questions_are_not_compared_and_that_is_said(pair, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    protocols = read_json(other / "manifest.json")["protocols"]
    protocols["gqa@miniature"]["digest"] = "another"
    manifest(other, protocols=protocols)
    scores = pd.read_parquet(other / "scores.parquet")
    gone = (scores["protocol"] == "pope@miniature") & scores["cluster"].str.endswith("3")
    scores[~gone].to_parquet(other / "scores.parquet")
    loaded = [Estimates(run, resamples=50) for run in runs.load([pair[0], other])]
    found = runs_apart.build("apart", *loaded)
    assert not {"GQA (miniature)", "POPE (miniature)"} & {c.label for c in found.columns}
    assert sum("asked different questions" in note for note in found.notes) == 2


def test_runs_that_share_nothing_say_so(pair, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    protocols = read_json(other / "manifest.json")["protocols"]
    manifest(other, protocols={name: record | {"digest": "another"} for name, record in protocols.items()})
    loaded = [Estimates(run, resamples=50) for run in runs.load([pair[0], other])]
    with pytest.raises(frames.Missing, match="share no protocol with the same questions"):
        runs_apart.build("apart", *loaded)


# ---- the whole report ------------------------------------------------------------------------------------------------------


def test_one_report_of_two_runs(pair, tmp_path, undrawn):
    written = build(pair, out=tmp_path / "both", resamples=50)
    names = {path.relative_to(tmp_path / "both").as_posix() for path in written}
    assert {"report.md", "report.tex", "index.html", "tables/runs-tuesday-minus-monday.csv"} <= names
    text = (tmp_path / "both" / "report.md").read_text()
    assert text.startswith("# monday and tuesday (miniature suite)\n")
    for run in runs.load(pair):
        assert text.count(f"Run `{run.name}`, manifest {run.digest[:16]}") > 3
    assert text.count("No number here is comparable with a published one") == 1  # true of both, said once
    assert "    python -m harness.report --run monday --run tuesday\n" in text
    assert "tuesday: ce" in (tmp_path / "both" / "index.html").read_text() or "tuesday" in "".join(
        path.read_text() for path in (tmp_path / "both" / "samples").glob("*.js")
    )


def test_figures_are_drawn_once_per_run(pair, tmp_path, unsaved, monkeypatch):
    from reports import figures

    one = [d for d in figures.drawings() if d.name == "loss-trajectories"]
    monkeypatch.setattr("reports.drawn.drawings", lambda: one)
    build(pair, formats=("md",), layouts=["accuracy"], out=tmp_path, resamples=50)
    assert {p.name for p in (tmp_path / "figures").glob("*.png")} == {
        "loss-trajectories--monday.png", "loss-trajectories--tuesday.png",
    }  # fmt: skip
    text = (tmp_path / "report.md").read_text()
    assert ", run monday" in text and ", run tuesday" in text


def test_a_piece_that_one_run_lacks_is_said_of_it(pair, tmp_path, undrawn):
    other = tmp_path / "bare"
    shutil.copytree(pair[1], other)
    (other / "diagnostics.parquet").unlink()
    build([pair[0], other], formats=("md",), layouts=["likelihood"], out=tmp_path / "out", resamples=50)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "`bare`: The run holds no diagnostics.parquet." in text
    assert "`monday`" in text


# ---- the command -----------------------------------------------------------------------------------------------------------


def run_command(*arguments):
    return CliRunner().invoke(command.app, [str(a) for a in arguments])


def test_the_command_writes_one_report_beside_the_runs(pair, tmp_path, undrawn):
    for run in pair:
        shutil.copytree(run, tmp_path / run.name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    done = run_command(
        "--run", tmp_path / "monday", "--run", tmp_path / "tuesday", "--layout", "accuracy", "--format", "md",
        "--out", tmp_path / "both",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    text = (tmp_path / "both" / "report.md").read_text()
    again = "python -m harness.report --run monday --run tuesday --format md --layout accuracy --out both"
    assert f"    {again}\n" in text
    assert {path: path.read_bytes() for path in before if path.name != ".holder.json"} == {
        path: content for path, content in before.items() if path.name != ".holder.json"
    }


def test_without_out_it_lies_in_the_first_run(pair, tmp_path, undrawn):
    for run in pair:
        shutil.copytree(run, tmp_path / run.name)
    done = run_command("--run", tmp_path / "monday", "--run", tmp_path / "tuesday", "--layout", "accuracy", "--format", "md")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "monday" / "report-with-tuesday" / "report.md").is_file()
    assert not (tmp_path / "tuesday" / "report").exists()


def test_what_was_chosen_is_in_the_command_that_makes_it_again(pair, tmp_path, undrawn):
    shutil.copytree(pair[0], tmp_path / "monday")
    done = run_command("--run", tmp_path / "monday", "--layout", "accuracy", "--format", "md")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "monday" / "report" / "report.md").read_text()
    assert "    python -m harness.report --run monday --format md --layout accuracy\n" in text
    assert text.rstrip().endswith("python -m harness.run --students all")  # how the run itself was made, last of all


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--layout", "acuracy"), "Did you mean 'accuracy'"), (("--format", "mdd"), "Did you mean 'md'")],
)
def test_wrong_names_are_bad_input(pair, arguments, said):
    done = run_command("--run", pair[0], *arguments)
    assert isinstance(done.exception, UserError) and said in str(done.exception)
    json.dumps(str(done.exception))
    assert "\n" not in str(done.exception)
