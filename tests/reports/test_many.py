"""Runs of many students, as the presets energies and weightings make: baselines, legible figures, a summary that is no wall."""

import importlib
import re

import numpy as np
import pandas as pd
import pytest
import simulate

from harness.base import UserError, read_jsonl, write_jsonl
from reports import figures, frames, markup, tables
from reports.build import build
from reports.conclusions import conclusions
from reports.figures import style
from reports.frames import Irrelevant, adapts
from reports.measures import Estimates
from reports.tables import layouts

ENERGIES = ["fkl", "rkl", "js", "tvd", "skew_fkl", "cosine_probs"]
WEIGHTINGS = ["ce", *(f"ce+{e}@{w}" for e in ENERGIES for w in ("manual", "task", "instance", "analytic"))]
ALONE = [
    "ce",
    *ENERGIES,
    "rkl",
    "mse_probs",
    "mse_logits",
    "cosine_logits",
    "adaptive_kl",
    "ctkd",
    "dkd",
    "align_kd@fixed@focus4",
]
ALONE = list(dict.fromkeys(ALONE))


@pytest.fixture(scope="module")
def weighed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "weightings"
    return Estimates(frames.load(simulate.write_run(folder, (0, 1), clusters=14, students=WEIGHTINGS, steps=40)), resamples=200)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "energies"
    return Estimates(frames.load(simulate.write_run(folder, clusters=14, students=ALONE, steps=40)), resamples=200)


def relevant(estimates):
    out = {}
    for name, layout in layouts().items():
        try:
            out[name] = tables.build(name, layout, estimates)
        except Irrelevant:
            continue
        except frames.Missing:
            assert name.startswith("paper-")  # the paper's other tables have other students
    return out


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ("ce+fkl@task", True),
        ("ce+fkl@instance@teacher-gate", True),
        ("ce+fkl@analytic", True),
        ("ce+fkl@rlw", True),
        ("ce+fkl@fixed@lambda4", False),
        ("ce+fkl@manual", False),
        ("ce+fkl@oracle", False),
        ("fkl", False),
        ("ce", False),
        ("teacher", False),
    ],
)
def test_whose_weights_come_out_of_the_training(student, expected):
    assert adapts(student) is expected


def test_without_fixed_students_manual_is_the_baseline(weighed):
    built = relevant(weighed)
    assert {"difference-manual", "likelihood-manual", "difference-ce"} <= set(built)
    assert not {"difference-fixed", "likelihood-fixed"} & set(built)
    table = built["likelihood-manual"]
    assert len(table.rows) == 18
    for row in table.rows:
        assert row.minus == row.label.partition("@")[0] + "@manual"
        values = [weighed.interval(s, "nll", None).value for s in (row.label, row.minus)]
        assert row.cells[-1].value == pytest.approx(values[0] - values[1])


def test_single_channels_are_compared_with_ce_alone(alone):
    built = relevant(alone)
    assert not any(name.endswith(("-fixed", "-manual")) for name in built)
    assert {row.label for row in built["likelihood-ce"].rows} == set(ALONE) - {"ce"}
    said = next(c.text for c in conclusions(alone) if c.text.startswith("Test NLL"))
    assert "lowest first" in said


def test_a_table_asked_for_by_name_says_why_it_is_empty(tmp_path, unsaved):
    run = simulate.write_run(tmp_path / "run", clusters=14, students=["ce", "fkl"], steps=20)
    build(run, formats=("md",), resamples=50)
    assert "no student beside its @fixed" not in (run / "report" / "report.md").read_text()
    build(run, formats=("md",), layouts=["difference-fixed"], resamples=50)
    assert "no student beside its @fixed" in (run / "report" / "report.md").read_text()


def test_the_summary_is_no_wall(weighed, alone):
    for estimates in (weighed, alone):
        said = conclusions(estimates)
        assert len(said) <= 16
        assert max(len(c.text) for c in said) < 900


def test_each_weighting_is_told_once_over_all_energies(weighed):
    said = [c.text for c in conclusions(weighed) if c.text.startswith("Against `@")]
    assert [" ".join(re.findall(r"`@(\w+)`", text)) for text in said] == [
        "manual task", "manual instance", "manual analytic", "task instance"
    ]  # fmt: skip
    assert all("over 6 energies" in text for text in said)
    for text in said:  # every energy is counted once per measure
        for part in text.split("mean ")[1:]:
            assert sum(int(n) for n in re.findall(r"with (\d+)", part)) == 6


def test_directions_follow_the_intervals(weighed):
    text = next(c.text for c in conclusions(weighed) if "Against `@manual`" in c.text and "`@task`" in c.text)
    nll = text.split("mean ")[1]
    for energy in ENERGIES:
        found = weighed.difference(f"ce+{energy}@task", f"ce+{energy}@manual", "nll", None)
        lower = nll.partition("resolved lower with")[2].partition("resolved higher")[0]
        assert (f"`{energy}`" in lower) == (found.resolved and found.value < 0)


def test_figures_of_many_students_draw_every_family_and_label_it(weighed, alone):
    by_name = {d.name: d for d in figures.drawings()}
    for estimates, expected in ((weighed, ENERGIES), (alone, [s.partition("@")[0] for s in ALONE])):
        with style.use(style.LIGHT):
            figure = by_name["loss-trajectories"].draw(estimates, style.LIGHT)
        titles = [a.get_title(loc="left") for a in figure.axes if a.get_visible() and a.get_title(loc="left")]
        assert titles == expected
        assert figure.get_size_inches()[1] <= 9.5  # a page
        assert all(len(a.get_lines()) <= 5 for a in figure.axes)
    with style.use(style.LIGHT), pytest.raises(Irrelevant):
        by_name["beta-evolution"].draw(alone, style.LIGHT)
    with style.use(style.LIGHT):
        figure = by_name["beta-evolution"].draw(weighed, style.LIGHT)
        labels = {t.get_text() for t in figure.legends[0].get_texts()}
    assert labels == {"manual", "task", "instance (median, 10–90 %)", "analytic (median, 10–90 %)"}


def test_what_has_no_room_is_said(weighed, monkeypatch):
    from reports.figures import beta_evolution, beta_trust, loss_trajectories

    for module, lost in (
        (beta_evolution, "cosine_probs"),
        (beta_trust, "ce+cosine_probs@analytic"),
        (loss_trajectories, "tvd"),
    ):
        monkeypatch.setattr(module, "MOST", 2)
        with style.use(style.LIGHT):
            module.draw(weighed, style.LIGHT)
        assert any("for want of room" in note and lost in note for note in module.notes(weighed))


def test_long_tables_are_cut_for_paper_and_lose_no_row(weighed, monkeypatch):
    monkeypatch.setattr(markup, "MOST_ROWS", 20)
    table = tables.build("accuracy", layouts()["accuracy"], weighed)
    pages = markup.tex_pages(table)
    assert len(pages) == 2
    assert [row for part in pages for row in part] == list(table.rows)
    assert max(map(len, pages)) <= markup.MOST_ROWS
    part = type("Part", (), {"name": "accuracy", "title": table.title, "caption": "c", "table": table})
    text = markup.tex_environment().get_template("table.tex.jinja").render(part=part)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count(r"\label{") == 1 and "continued" in text


def test_a_layout_in_python_is_one_file(weighed, monkeypatch):
    table = tables.Table("planted-truth", "Mine", "c", (), (), (), False)
    code = type("Code", (), {"TITLE": "Mine", "CAPTION": "c", "ORDER": 1, "build": staticmethod(lambda name, e: table)})
    monkeypatch.setattr(importlib, "import_module", lambda name: code)
    layout = layouts(["planted-truth"])["planted-truth"]
    assert layout.title == "Mine"
    built = tables.build("planted-truth", layout, weighed)
    assert built.title == "Mine" and built.origins[0].run == weighed.run.name
    monkeypatch.setattr(importlib, "import_module", lambda name: type("Code", (), {"TITLE": "t"}))
    with pytest.raises(UserError, match="needs CAPTION, ORDER, build"):
        layouts(["planted-truth"])


# ---- dynamics --------------------------------------------------------------------------------------------------------------


def test_a_channel_that_no_sample_of_a_step_has_is_no_number(tmp_path):
    run = simulate.write_run(tmp_path / "run", clusters=14, students=["ce", "ce+fkl@task"], steps=20)
    path = run / "students" / "ce+fkl@task" / "seed0" / "dynamics.jsonl"
    lines = read_jsonl(path)
    lines[3]["loss"]["fkl"] = lines[3]["weight"]["fkl"] = None
    for line in lines[10:]:
        del line["teacher_entropy"]  # as in older runs
    write_jsonl(path, lines)
    frame = frames.load(run).dynamics
    own = frame[(frame["student"] == "ce+fkl@task") & (frame["channel"] == "fkl")]
    assert np.isnan(own["loss"].to_numpy()).sum() == 1
    assert len(own) == 20
    lines[3]["loss"]["fkl"] = "large"
    write_jsonl(path, lines)
    with pytest.raises(UserError, match=r"dynamics\.jsonl, line 4"):
        _ = frames.load(run).dynamics


def test_a_weight_of_zero_is_left_off_the_axis_and_said(tmp_path):
    run = simulate.write_run(tmp_path / "run", clusters=14, students=["ce", "ce+fkl@fixed", "ce+fkl@instance"], steps=40)
    path = run / "students" / "ce+fkl@instance" / "seed0" / "betas.parquet"
    frame = pd.read_parquet(path)
    frame.loc[frame.index[-1], "beta"] = 0.0
    frame.to_parquet(path)
    estimates = Estimates(frames.load(run), resamples=50)
    by_name = {d.name: d for d in figures.drawings()}
    for name in ("beta-evolution", "beta-trust"):
        assert any("weights of 0" in note and "ce+fkl@instance" in note for note in by_name[name].notes(estimates))
    assert any("late in training" in c.text for c in conclusions(estimates))  # ranks need no logarithm
