"""A report of a run that is not whole: each missing piece is said in its place, in every format, and nothing is made up."""

import re
import shutil

import pandas as pd
import pytest

from harness import report as command
from harness.base import UserError, read_json, write_json
from reports import figures
from reports.build import build

LOST = "ce+fkl@task"


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without figures: drawing them takes most of the time."""
    monkeypatch.setattr("reports.drawn.drawings", list)


@pytest.fixture
def few_drawn(monkeypatch, unsaved):
    """Two figures, whose data a test takes away."""
    kept = [d for d in figures.drawings() if d.name in ("loss-trajectories", "logit-distributions")]
    monkeypatch.setattr("reports.drawn.drawings", lambda: kept)


def forget(run, student):
    """What a student that failed leaves: its name in the manifest."""
    for name in ("scores.parquet", "diagnostics.parquet"):
        frame = pd.read_parquet(run / name)
        frame[frame["student"] != student].to_parquet(run / name)
    shutil.rmtree(run / "students" / student)
    shutil.rmtree(run / "replies" / student)


def test_a_student_that_failed_keeps_its_rows_of_dashes(small_copy, undrawn):
    forget(small_copy, LOST)
    build(small_copy, resamples=50)
    text = (small_copy / "report" / "report.md").read_text()
    assert f"Not scored in this run: `{LOST}`." in text
    tables = {path.stem: path.read_text() for path in (small_copy / "report" / "tables").glob("*.md")}
    for name in ("accuracy", "likelihood", "cost", "paper-2", "paper-6"):
        line = next(line for line in tables[name].splitlines() if f"`{LOST}`" in line and line.startswith("|"))
        assert set(line.split("|")[2:-1]) <= {cell for cell in line.split("|") if cell.strip() == "–"}, name
    frame = pd.read_csv(small_copy / "report" / "tables" / "accuracy.csv")
    assert LOST not in set(frame["student"])
    assert not (frame["value"] == 0.0).all()
    assert f"`{LOST}`" in text and "nan" not in text.lower()


def test_one_seed_is_said_and_no_training_variation_is_claimed(small_run, tmp_path, undrawn):
    build(small_run, formats=("md",), out=tmp_path, resamples=50)
    text = (tmp_path / "report.md").read_text()
    assert "One seed per student: training variation is unmeasured." in text
    assert pd.read_csv(tmp_path / "tables" / "accuracy.csv")["training_sd"].isna().all()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("images", "cannot be shown"),
        ("students/*/seed0/dynamics.jsonl", "The run holds no dynamics.jsonl"),
        ("students/*/seed0/cost.json", "The run holds no cost.json"),
        ("students/*/seed0/snapshots.npz", "The run holds no snapshots.npz"),
        ("data", None),
    ],
)
def test_what_trainings_left_out_is_said_in_place(small_copy, gone, said, few_drawn):
    for path in small_copy.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    build(small_copy, resamples=50)
    page = (small_copy / "report" / "index.html").read_text()
    assert said is None or said in page
    assert "Every student on every benchmark" in page


def test_without_dynamics_speed_is_a_dash_and_memory_stands(small_copy, undrawn):
    for path in small_copy.glob("students/*/seed0/dynamics.jsonl"):
        path.unlink()
    build(small_copy, formats=("md",), layouts=["paper-6"], resamples=50)
    frame = pd.read_csv(small_copy / "report" / "tables" / "paper-6.csv")
    assert set(frame["measure"]) == {"GB"}
    assert "–: not run, not recorded, or not reported." in (small_copy / "report" / "report.md").read_text()


def test_a_run_that_holds_nothing_but_its_manifest_is_a_report_of_what_is_missing(small_copy, undrawn):
    for path in small_copy.iterdir():
        if path.name != "manifest.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    build(small_copy, resamples=50)
    for name in ("report.md", "report.tex", "index.html"):
        assert "no scores.parquet" in (small_copy / "report" / name).read_text(), name
    assert not list((small_copy / "report" / "tables").glob("*.csv"))


@pytest.mark.parametrize("name", ["cost.json", "dynamics.jsonl"])
def test_a_damaged_file_of_a_training_is_named_in_one_line(small_copy, name, undrawn):
    path = small_copy / "students" / "ce" / "seed0" / name
    path.write_bytes(path.read_bytes()[:15])
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        build(small_copy, formats=("md",), resamples=50)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_manifest_without_a_command_or_commit_says_not_recorded(small_copy, undrawn):
    manifest = read_json(small_copy / "manifest.json")
    write_json(small_copy / "manifest.json", {k: v for k, v in manifest.items() if k not in ("command", "git_commit")})
    build(small_copy, formats=("md",), layouts=["accuracy"], resamples=50)
    text = (small_copy / "report" / "report.md").read_text()
    assert "- Harness commit: not recorded" in text
    assert "harness not recorded." in text
    assert text.rstrip().endswith("not recorded")


def test_report_md_ends_with_the_command_that_makes_it_again(small_copy, undrawn):
    """The exact command, run from the folder that holds the run, gives the same text."""
    build(small_copy, formats=("md", "tex", "html"))
    text = (small_copy / "report" / "report.md").read_text()
    last = text[text.index("## How to make it again") :]
    found = re.search(r"^    python -m harness\.report (.+)$", last, re.MULTILINE).group(1).split()
    assert found == ["--run", "small"]
    before = {p.name: p.read_bytes() for p in (small_copy / "report" / "tables").iterdir()}
    command.report(run=[small_copy.parent / found[1]])
    assert (small_copy / "report" / "report.md").read_text() == text
    assert {p.name: p.read_bytes() for p in (small_copy / "report" / "tables").iterdir()} == before
