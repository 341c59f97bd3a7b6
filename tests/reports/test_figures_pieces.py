"""What figures compute beside drawing: snapshots, reliability, forest plots, totals, categories, costs."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import simulate
from scipy import stats

from harness.base import UserError, read_jsonl, write_jsonl
from reports import figures, frames
from reports.figures import _categories, _facts, _forest, _snapshots, calibration, style, total_loss
from reports.frames import Irrelevant, Missing
from reports.measures import Estimates
from tasks.aggregate import aggregate


def estimates_of(folder, resamples=40):
    return Estimates(frames.load(folder), resamples=resamples)


def draw(name, estimates):
    with style.use(style.LIGHT):
        return next(d for d in figures.drawings() if d.name == name).draw(estimates, style.LIGHT)


# ---- snapshots -------------------------------------------------------------------------------------------------------------


def test_densities_hold_the_logits_and_seeds_are_pooled(planted_run):
    found = _snapshots.snapshots(estimates_of(planted_run))
    width = np.diff(found.edges)
    for snapshot in found.students.values():
        assert snapshot.steps == {"early": (1, 1), "late": (80, 80)}
        for key, density in snapshot.density.items():
            assert (density >= 0).all()
            assert 0.998 <= (density * width).sum() <= 1.0 + 1e-9, key
            assert snapshot.counts[key] == 2 * 5000


def test_a_histogram_on_its_own_edges_comes_back(tmp_path):
    counts = np.array([1.0, 2.0, 3.0, 2.0, 2.0])
    edges = np.linspace(-1.0, 4.0, 6)
    table = {"edges": edges, "early_step": np.array(1), "late_step": np.array(9)} | {
        f"{o}_{m}": counts for o in _snapshots.OWNERS for m in _snapshots.MOMENTS
    }
    density = _snapshots._pooled([table, table], edges).density["student", "early"]
    assert density == pytest.approx(counts / 10.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b"not a zip"), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "damaged"),
        (lambda path: np.savez(path, edges=np.arange(3.0)), "lacks early_step"),
        (lambda path: simulate_broken(path, edges=np.array([0.0, 0.0, 1.0])), "do not rise"),
        (lambda path: simulate_broken(path, student_early=np.zeros(100)), "no histogram"),
        (lambda path: simulate_broken(path, student_early=np.ones(7)), "no histogram"),
    ],
)
def test_a_damaged_snapshot_is_named(small_copy, change, said):
    path = small_copy / "students" / "ce" / "seed0" / "snapshots.npz"
    change(path)
    with pytest.raises(UserError, match=said) as error:
        draw("logit-distributions", estimates_of(small_copy))
    assert str(path) in str(error.value)


def simulate_broken(path, **arrays):
    with np.load(path) as file:
        table = {name: file[name] for name in file.files}
    np.savez(path, **{**table, **arrays})


def test_no_snapshots_is_missing(small_copy):
    for path in small_copy.glob("students/*/seed*/snapshots.npz"):
        path.unlink()
    with pytest.raises(Missing, match="no snapshots"):
        draw("logit-distributions", estimates_of(small_copy))


def test_a_student_that_met_no_teacher_is_drawn_alone(small_copy):
    """``ce`` beside a live teacher never loads it; a file that holds half of a teacher is damaged all the same."""
    path = next(small_copy.glob("students/ce/seed0/snapshots.npz"))
    with np.load(path) as file:
        table = {name: file[name] for name in file.files}
    np.savez(path, **{name: values for name, values in table.items() if not name.startswith("teacher_")})
    estimates = estimates_of(small_copy)
    draw("logit-distributions", estimates)
    said = next(d for d in figures.drawings() if d.name == "logit-distributions").notes(estimates)
    assert any(note.startswith("No teacher is drawn") and note.endswith("no logits: ce.") for note in said)
    np.savez(path, **{name: values for name, values in table.items() if name != "teacher_late"})
    with pytest.raises(UserError, match="lacks teacher_late"):
        draw("logit-distributions", estimates_of(small_copy))


def test_students_of_bins_are_drawn_without_their_teacher(small_copy):
    """A teacher whose likeliest tokens alone were kept has no logits to count, for any student."""
    for path in small_copy.glob("students/*/seed*/snapshots.npz"):
        with np.load(path) as file:
            table = {name: file[name] for name in file.files if not name.startswith("teacher_")}
        np.savez(path, **table)
    estimates = estimates_of(small_copy)
    draw("logit-distributions", estimates)
    (said,) = [note for note in notes_of("logit-distributions", estimates) if note.startswith("No teacher is drawn")]
    assert all(student in said for student in estimates.run.manifest.students)


def notes_of(name, estimates):
    return next(d for d in figures.drawings() if d.name == name).notes(estimates)


# ---- reliability -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(0, 5), (3, 10), (50, 50), (17, 400)])
def test_wilsons_interval_is_scipys(right, n):
    expected = stats.binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert calibration.wilson(right / n, float(n), 0.95) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_repeated_questions_count_once():
    rng = np.random.default_rng(3)
    once = (rng.random(400) < 0.7).astype(float)
    alone = calibration.effective(once, np.arange(400))
    assert alone == pytest.approx(400, rel=0.01)
    fourfold = calibration.effective(np.repeat(once, 4), np.repeat(np.arange(400), 4))
    assert fourfold == pytest.approx(400, rel=0.01)
    assert calibration.effective(np.ones(40), np.repeat(np.arange(10), 4)) == 10


def test_reliability_finds_what_was_put_in():
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0.35, 1.0, 20000)
    score = (rng.random(20000) < confidence - 0.2).astype(float)  # too sure by 20 points
    frame = pd.DataFrame({"confidence": confidence, "score": score, "cluster": np.arange(20000)})
    found = calibration.reliability(frame, 0.95)
    assert found.confidence - found.right == pytest.approx(0.2, abs=0.03)
    assert ((found.low < found.right) & (found.right < found.high)).all()
    assert found.shares.sum() == pytest.approx(1.0)
    assert (found.shares[:3] == 0).all() and len(found.right) == 7
    few = calibration.reliability(frame.head(calibration.LEAST - 1), 0.95)
    assert len(few.right) == 0


# ---- forest plots ----------------------------------------------------------------------------------------------------------


def test_forest_rows_are_the_differences_and_filled_where_resolved(whole_run):
    estimates = estimates_of(whole_run)
    found = _forest.pairs(estimates, ["@fixed", "@manual"])
    assert [(p.student, p.other) for p in found] == [
        (f"ce+{e}@{w}", f"ce+{e}@fixed") for e, w in
        [("fkl", "task"), ("fkl", "instance"), ("cosine_probs", "task"), ("cosine_probs", "instance"),
         ("fkl", "fixed@lambda0.3"), ("fkl", "fixed@lambda4")]
    ]  # fmt: skip
    figure = draw("accuracy-differences", estimates)
    assert figure.axes[0].get_title(loc="left") == "Average"
    axes = figure.axes[0]
    markers = [line for line in axes.get_lines() if line.get_marker() not in ("None", "", None)]
    for line, pair in zip(markers, found, strict=True):
        d = pair.found[None]
        assert line.get_xdata()[0] == pytest.approx(d.value)
        assert (line.get_markerfacecolor() == style.LIGHT.paper) == (not d.resolved)


def test_many_rows_show_the_average_alone_and_say_so(tmp_path):
    students = ["ce", *(f"ce+{e}@{w}" for e in ("fkl", "rkl", "js", "tvd") for w in ("manual", "task", "instance", "analytic"))]
    estimates = estimates_of(simulate.write_run(tmp_path / "run", clusters=8, students=students, steps=8), 20)
    drawing = next(d for d in figures.drawings() if d.name == "accuracy-differences")
    assert sum(a.get_visible() for a in draw(drawing.name, estimates).axes) == 1
    assert any("average alone" in note for note in drawing.notes(estimates))
    assert any("ce+tvd@manual" in note for note in drawing.notes(estimates))


def test_no_pair_is_irrelevant(tmp_path):
    estimates = estimates_of(simulate.write_run(tmp_path / "run", clusters=8, students=["fkl"], steps=8), 20)
    for name in ("accuracy-differences", "accuracy-differences-ce"):
        with pytest.raises(Irrelevant):
            draw(name, estimates)


# ---- losses ----------------------------------------------------------------------------------------------------------------


def test_a_negative_total_is_explained_only_where_it_happens(small_copy):
    assert not any("Below zero" in note for note in total_loss.notes(estimates_of(small_copy)))
    path = small_copy / "students" / "ce+fkl@instance" / "seed0" / "dynamics.jsonl"
    write_jsonl(path, [{**line, "total": -1.0} for line in read_jsonl(path)])
    note = next(n for n in total_loss.notes(estimates_of(small_copy)) if "Below zero" in n)
    assert "ce+fkl@instance" in note and "ce+fkl@task" not in note
    assert "no error" in note and "log β" in note
    zero = [line for line in draw("total-loss", estimates_of(small_copy)).axes[0].get_lines() if set(line.get_ydata()) == {0.0}]
    assert len(zero) == 1


def test_bands_span_the_seeds(planted_run):
    figure = draw("loss-trajectories", estimates_of(planted_run))
    shown = [a for a in figure.axes if a.get_visible()]
    assert all(a.collections for a in shown)  # two seeds: a band for every line
    assert "2 seeds" in _facts.trainings(estimates_of(planted_run))


# ---- categories and cost ---------------------------------------------------------------------------------------------------


def test_categories_of_mme_add_up_to_its_score(small_run):
    estimates = estimates_of(small_run)
    found = _categories.found(estimates, "mme")
    assert set(found.categories) == set(simulate.CATEGORIES)
    for student, per in found.results.items():
        rows = estimates.run.scored(student, "mme@miniature")
        assert sum(e.value for e in per.values()) == pytest.approx(aggregate(rows, "mme"))
        assert all(0.0 <= e.value <= 200.0 for e in per.values())


def test_labels_of_categories_fit_an_axis():
    assert _categories.label("Finegrained Perception (instance-level): Attribute Recognition") == "Attribute Rec…"
    assert _categories.label("numerical_calculation") == "numerical cal…"
    assert _categories.label("color") == "color"


def test_a_benchmark_that_was_not_run_is_irrelevant(small_copy):
    manifest = json.loads((small_copy / "manifest.json").read_text())
    manifest["protocols"].pop("mme@miniature")
    (small_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Irrelevant, match="no mme"):
        draw("categories-mme", estimates_of(small_copy))


def test_costs_that_were_not_recorded_are_said(small_copy):
    shutil.rmtree(small_copy / "students" / "ce+fkl@task")
    drawing = next(d for d in figures.drawings() if d.name == "accuracy-cost")
    draw(drawing.name, estimates_of(small_copy))
    assert any("ce+fkl@task" in note for note in drawing.notes(estimates_of(small_copy)))
    for path in small_copy.glob("students/*/seed*/cost.json"):
        path.unlink()
    with pytest.raises(Missing, match=r"no cost\.json"):
        draw(drawing.name, estimates_of(small_copy))


def test_numbers_in_words():
    assert _facts.span([3700, 3700]) == "3,700"
    assert _facts.span([400, 3700, 600]) == "400 to 3,700"
    assert _facts.seeds_told([1]) == "1 seed"
    assert _facts.seeds_told([1, 3]) == "1 to 3 seeds"
    assert _facts.unroomy([]) == []
