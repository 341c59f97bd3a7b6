"""The whole report: every format, nothing from outside, missing pieces said in place, damaged files named."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
import simulate

from harness.base import UserError, read_json, write_json
from reports import figures, frames, provenance
from reports.build import build
from reports.conclusions import conclusions
from reports.figures import style
from reports.measures import Estimates

#: Tables of trainings, which no protocol concerns.
WITHOUT_PROTOCOL = ("cost", "weights-trust", "teacher-likeness", "paper-6")


@pytest.fixture(scope="module")
def report(whole_run, tmp_path_factory):
    """The report and its files, with matplotlib's settings before and the modules it loaded: one build for many tests."""
    out = tmp_path_factory.mktemp("report")
    settings, modules = dict(mpl.rcParams), set(sys.modules)
    written = build(whole_run, out=out)
    return out, written, settings, set(sys.modules) - modules


def test_the_files_of_the_contract_are_written(report):
    out, written, *_ = report
    assert all(path.is_file() and path.stat().st_size > 0 for path in written)
    names = {path.relative_to(out).as_posix() for path in written}
    assert {"report.md", "report.tex", "index.html"} <= names
    for stem in ("accuracy", "difference-fixed", "likelihood"):
        assert {f"tables/{stem}.{ext}" for ext in ("md", "tex", "csv")} <= names
    for drawing in [d for d in figures.drawings() if d.name not in ("planted-truth", "logit-distributions")]:  # no such data
        assert {f"figures/{drawing.name}.png", f"figures/{drawing.name}.pdf"} <= names
    assert not list(out.rglob("*.tmp"))


def test_formats_are_chosen_and_checked(small_run, tmp_path, unsaved):
    names = {p.name for p in build(small_run, formats=("md",), layouts=["accuracy"], out=tmp_path, resamples=50)}
    assert "report.md" in names
    assert not names & {"report.tex", "index.html", "likelihood.csv"}
    with pytest.raises(UserError, match="Did you mean 'html'"):
        build(small_run, formats=("htm",), out=tmp_path)


def test_miniature_is_said_wherever_numbers_stand(report):
    out, *_ = report
    for path in [*out.glob("tables/*.md"), *out.glob("tables/*.tex"), out / "report.md", out / "index.html"]:
        assert "miniature" in path.read_text().splitlines()[0].lower() or "(miniature suite)" in path.read_text()


def test_provenance_names_run_digest_commit_and_protocols(report, whole_run):
    out, *_ = report
    digest = frames.load(whole_run).digest[:16]
    for name in ("report.md", "report.tex", "index.html"):
        text = (out / name).read_text()
        assert digest in text
        assert "0" * 40 in text
        assert "python -m harness.report --run" in text.replace("-{}-", "--")
        assert "gqa@miniature version 1" in text


def test_provenance_says_how_evaluations_were_made(small_copy):
    manifest = read_json(small_copy / "manifest.json")
    signal = (
        "teacher signal: topk, k = 64, float16, 1 GB at most, because it fits; measured against exact: |d log p| at most 0.008"
    )
    write_json(small_copy / "manifest.json", {**manifest, "signal": [signal], "vision": ["images: once per image, because"]})
    how = {"batch_size": 128, "attention": "sdpa", "device": "cpu", "dtype": "float32", "gold": {"padding": "none"}}
    ways = [{"padding": "none", "made_again_alone": 0}, {"padding": "left", "made_again_alone": 2}, None]
    names = list(manifest["protocols"])
    for number, name in enumerate(names[:4]):
        replies = {"how": {**how, "replies": ways[number]}} if number < 3 else {}  # as of a run from before
        path = small_copy / "replies" / "ce" / "seed0" / f"{name}.words.json"
        write_json(path, {"tokens": 9, "tokens_unknown": 0, **replies})
    run = frames.load(small_copy)
    said = dict(provenance.told(run, 100))
    usual = "batches of at most 128, attention sdpa, float32 on cpu"
    assert said["Evaluations"] == (
        f"1 with {usual}, no padding; 1 with {usual}, replies padded on the left; "
        f"1 with {usual}, padding of the replies not recorded; 1 not recorded; 2 replies near a tie were made again alone"
    )
    assert said["Teacher's signal"] == signal
    assert said["Vision tower"].startswith("images: once")


def test_every_table_and_figure_names_run_manifest_commit_and_protocol_versions(report, whole_run):
    out, *_ = report
    digest = frames.load(whole_run).digest
    for path in [*out.glob("tables/*.md"), *out.glob("tables/*.tex")]:
        text = path.read_text()
        assert f"manifest {digest[:16]}, harness {'0' * 12}." in text, path.name
        assert "@miniature" not in text or "version 1" in text or path.stem in WITHOUT_PROTOCOL, path.name
    for path in out.glob("tables/*.csv"):
        frame = pd.read_csv(path, dtype={"commit": str})  # a commit may be digits alone
        assert (frame["manifest_digest"] == digest).all() and (frame["commit"] == "0" * 40).all(), path.name
        own = frame["protocol"].str.contains("@")
        assert (frame.loc[own, "protocol_version"] == 1).all() and (frame["run"] == whole_run.name).all()
    text = (out / "report.md").read_text()
    shown = text[text.index("## Figures") : text.index("## Where these numbers")].split("### Figure ")[1:]
    for part in shown:
        assert "The run holds no" in part or f"manifest {digest[:16]}, harness" in part
        assert "The run holds no" in part or "gqa@miniature 1" in part


def test_text_is_deterministic(report, whole_run, tmp_path, unsaved):
    for path in build(whole_run, out=tmp_path):
        if path.parent.name != "figures":
            assert path.read_bytes() == (report[0] / path.relative_to(tmp_path)).read_bytes(), path.name


def test_figures_are_deterministic(report, whole_run, tmp_path):
    drawing = next(d for d in figures.drawings() if d.name == "beta-trust")
    with style.use(style.LIGHT):
        figure = drawing.draw(Estimates(frames.load(whole_run)), style.LIGHT)
        for name in ("beta-trust.png", "beta-trust.pdf"):
            style.save(figure, tmp_path / name)
            assert (tmp_path / name).read_bytes() == (report[0] / "figures" / name).read_bytes()


def test_latex_compiles(report, tmp_path):
    latex = shutil.which("tectonic") or shutil.which("pdflatex")
    if latex is None:
        pytest.skip("neither tectonic nor pdflatex is installed")
    shutil.copytree(report[0], tmp_path / "r")
    done = subprocess.run([latex, "report.tex"], cwd=tmp_path / "r", capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "r" / "report.pdf").stat().st_size > 10_000


def test_latex_braces_balance_and_columns_match(report):
    for path in (report[0] / "tables").glob("*.tex"):
        text = path.read_text()
        bare = text.replace(r"\\", "").replace(r"\{", "").replace(r"\}", "")
        assert bare.count("{") == bare.count("}")
        assert bare.count(r"\begin{") == bare.count(r"\end{")
        spec = re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", text).group(1)
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        assert len(re.findall(r"(?<!\\)&", body)) == (len(spec) - 1) * body.count(r"\\[2pt]")


def test_nothing_global_is_left_changed(report):
    assert report[2] == dict(mpl.rcParams)
    assert "matplotlib.pyplot" not in report[3]


def test_figures_are_200_dpi_and_pdfs_carry_no_date(report):
    from PIL import Image

    for path in (report[0] / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert image.size[0] == pytest.approx(style.WIDTH * 200, abs=1)
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    for path in (report[0] / "figures").glob("*.pdf"):
        assert b"/CreationDate" not in path.read_bytes()


def test_a_figure_module_without_its_parts_is_named(monkeypatch):
    import types

    real = figures.importlib.import_module
    monkeypatch.setattr(figures.importlib, "import_module", lambda n: types.SimpleNamespace(__file__="broken.py", TITLE="t"))
    with pytest.raises(UserError, match=r"broken\.py: a figure needs CAPTION, ORDER, draw"):
        figures.drawings()
    monkeypatch.setattr(figures.importlib, "import_module", real)
    assert "planted-truth" in [d.name for d in figures.drawings()]


# ---- missing and damaged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("students", "no dynamics.jsonl"),
        ("students/*/seed0/betas.parquet", "no betas.parquet"),
        ("diagnostics.parquet", "no diagnostics.parquet"),
        ("scores.parquet", "no scores.parquet"),
        ("questions", "no questions/"),
        ("replies", "No replies in the run"),
    ],
)
def test_a_missing_piece_is_said_in_place(small_copy, gone, said, unsaved):
    for path in small_copy.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    build(small_copy, resamples=50)
    assert said in (small_copy / "report" / "index.html").read_text()
    assert "ScienceQA" in (small_copy / "report" / "report.md").read_text() or gone == "scores.parquet"


def test_no_label_noise_is_said_in_the_figure_and_not_concluded(small_copy, unsaved):
    for path in small_copy.glob("students/*/seed0/betas.parquet"):
        pd.read_parquet(path).assign(noisy=False).to_parquet(path)
    run = frames.load(small_copy)
    assert not any("noisy label" in c.text for c in conclusions(Estimates(run, resamples=50)))
    build(small_copy, formats=("md",), resamples=50)


def test_a_stale_figure_does_not_outlive_its_data(small_copy, unsaved):
    build(small_copy, formats=("md",), layouts=["accuracy"], resamples=50)
    shutil.rmtree(small_copy / "students")
    build(small_copy, formats=("md",), layouts=["accuracy"], resamples=50)
    assert not list((small_copy / "report" / "figures").glob("loss-trajectories*"))


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "scores.parquet",
        "diagnostics.parquet",
        "students/ce/seed0/dynamics.jsonl",
        "students/ce+fkl@instance/seed0/betas.parquet",
        "questions/gqa@miniature.parquet",
        "images/0000000000000000.png",
        "replies/ce/seed0/gqa@miniature.jsonl",
    ],
)
def test_a_damaged_file_is_named(small_copy, name, unsaved):
    path = small_copy / name
    content = path.read_bytes()
    path.write_bytes(content[: max(20, len(content) // 2)])
    for other in small_copy.glob("images/*.png") if "images" in name else ():
        other.write_bytes(other.read_bytes()[:30])
    with pytest.raises(UserError, match=re.escape(Path(name).suffix)) as caught:
        build(small_copy, resamples=50)
    assert "damaged" in str(caught.value) or "line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there_is_named(small_copy):
    path = small_copy / "scores.parquet"
    pd.read_parquet(path).drop(columns="gold").to_parquet(path)
    with pytest.raises(UserError, match=r"scores\.parquet lacks the column\(s\) gold"):
        build(small_copy)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        build(tmp_path)


def test_another_protocol_version_is_refused(small_copy):
    manifest = read_json(small_copy / "manifest.json")
    manifest["protocols"]["gqa@miniature"]["version"] = 99
    write_json(small_copy / "manifest.json", manifest)
    with pytest.raises(UserError, match="scored under gqa@miniature version 99"):
        build(small_copy)


def test_a_weight_that_is_not_positive_is_damage(small_copy, unsaved):
    path = small_copy / "students" / "ce+fkl@instance" / "seed0" / "betas.parquet"
    frame = pd.read_parquet(path)
    frame.loc[3, "beta"] = -1.0
    frame.to_parquet(path)
    with pytest.raises(UserError, match=r"has the weight -1\.0"):
        build(small_copy, resamples=50)


# ---- conclusions -----------------------------------------------------------------------------------------------------------


def alike(run: Path, students: list[str]) -> None:
    """Give every student the first one's answers."""
    for name in ("scores.parquet", "diagnostics.parquet"):
        frame = pd.read_parquet(run / name)
        first = frame[frame["student"] == students[0]]
        rest = frame[~frame["student"].isin(students)]
        pd.concat([rest, *(first.assign(student=s) for s in students)], ignore_index=True).to_parquet(run / name)


def test_students_that_answer_alike_are_called_unresolved(run_copy):
    alike(run_copy, simulate.STUDENTS)
    found = conclusions(Estimates(frames.load(run_copy), resamples=100))
    said = [c for c in found if "fixed, task and instance" in c.text]
    assert len(said) == 4  # scores and likelihood of two energies
    assert all(c.verdict == "unresolved" and "resolved" in c.text for c in said)
    assert any("0 are resolved above, 0 below and 54 not" in c.text for c in found)


def test_a_planted_difference_is_concluded_with_its_interval(run_copy):
    path = run_copy / "scores.parquet"
    scores = pd.read_parquet(path)
    here = scores["protocol"] == "gqa@miniature"
    scores.loc[here & (scores["student"] == "ce+fkl@task"), "score"] = 1.0
    scores.loc[here & scores["student"].isin(["ce+fkl@fixed", "ce+fkl@instance"]), "score"] = 0.25
    scores.to_parquet(path)
    found = conclusions(Estimates(frames.load(run_copy), resamples=400))
    text = next(c.text for c in found if c.text.startswith("`fkl`: "))
    assert "`ce+fkl@task` is above `ce+fkl@fixed` on GQA (miniature): +75.0 percentage points [+75.0, +75.0]" in text
    assert "`ce+fkl@instance` is below `ce+fkl@task` on GQA (miniature): −75.0" in text


def test_one_seed_and_many_comparisons_are_caveats(whole_run):
    found = conclusions(Estimates(frames.load(whole_run), resamples=100))
    caveats = " ".join(c.text for c in found if c.verdict == "caveat")
    assert "training variation is unmeasured" in caveats
    assert "Holm's correction covers the benchmarks of each pair" in caveats
    assert "miniature" in caveats


def test_a_limit_is_said(small_copy):
    manifest = read_json(small_copy / "manifest.json")
    write_json(small_copy / "manifest.json", manifest | {"limit": 12})
    found = conclusions(Estimates(frames.load(small_copy), resamples=50))
    assert any("cut to its first 12 clusters" in c.text for c in found)


def test_what_was_not_learned_from_is_said(small_copy):
    manifest = read_json(small_copy / "manifest.json")
    lost = "corpus captions lacks 3 of its source's 40 rows (3: unreadable image)"
    write_json(small_copy / "manifest.json", manifest | {"left_out": [lost]})
    found = conclusions(Estimates(frames.load(small_copy), resamples=50))
    assert f"Not learned from: {lost}." in [c.text for c in found if c.verdict == "caveat"]


@pytest.mark.slow
def test_two_processes_write_the_same_files(report, whole_run, tmp_path):
    written = build(whole_run, out=tmp_path, processes=2)
    assert sorted(path.relative_to(tmp_path) for path in written) == sorted(path.relative_to(report[0]) for path in report[1])
    for path in written:
        assert path.read_bytes() == (report[0] / path.relative_to(tmp_path)).read_bytes(), path.name
