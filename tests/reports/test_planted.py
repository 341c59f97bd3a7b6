"""The planted truth: shares, weights, correlations against independent arithmetic; a panel only where faults were planted."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import simulate
from scipy import stats

from harness.base import UserError
from reports import figures, frames, markup, tables
from reports.build import build
from reports.conclusions import conclusions
from reports.figures import style
from reports.frames import Irrelevant, Missing
from reports.measures import Estimates
from reports.planted import oracle_of, planted, recovered
from reports.statistics import bootstrap_mean
from reports.tables import layouts

ORACLE = "ce+fkl@oracle"
GATE = "ce+fkl@instance@teacher-gate"
NAMES = ("planted-truth", "planted-detection")


@pytest.fixture(scope="module")
def estimates(planted_run):
    return Estimates(frames.load(planted_run), resamples=300)


@pytest.fixture(scope="module")
def entries(estimates):
    return {e.student: e for e in planted(estimates).entries}


def late_betas(run, student, seed):
    """Geometric mean of late weights by sample, with the truth, in plain pandas."""
    betas = pd.read_parquet(run / "students" / student / f"seed{seed}" / "betas.parquet")
    betas = betas[betas["step"] >= 0.75 * betas["step"].max()]
    truth = pd.read_parquet(run / "data" / "train.parquet").dropna(subset="image").set_index("id")
    with np.errstate(divide="ignore"):
        log = np.log(betas["beta"].to_numpy(dtype=np.float64))
    return truth.join(betas.assign(log=log).groupby("id")["log"].mean(), how="inner")


# ---- shares ----------------------------------------------------------------------------------------------------------------


def test_the_oracle_recovers_all_and_ce_nothing_exactly(entries):
    for name in ("nll", "nll_pooled", "accuracy"):
        for student, expected in (("ce", 0.0), (ORACLE, 1.0)):
            share = entries[student].shares[name]
            assert share.interval.value == expected
            assert share.by_seed == (expected, expected)
            assert (share.interval.low, share.interval.note) == (None, "by definition")


def test_shares_equal_plain_arithmetic(planted_run, entries):
    nll = pd.read_parquet(planted_run / "diagnostics.parquet")
    score = pd.read_parquet(planted_run / "scores.parquet")
    equal = nll.groupby(["student", "protocol"])["nll"].mean().groupby("student").mean()
    pooled = nll.groupby("student")["nll"].mean()
    accuracy = score.groupby(["student", "protocol"])["score"].mean().groupby("student").mean()
    for student in [s for s in simulate.PLANTED if s not in ("ce", ORACLE)]:
        for name, value in (("nll", equal), ("nll_pooled", pooled), ("accuracy", accuracy)):
            share = entries[student].shares[name].interval
            assert share.value == pytest.approx((value["ce"] - value[student]) / (value["ce"] - value[ORACLE]))
            assert share.low < share.value < share.high


def rows(generator, level, clusters=80):
    values = generator.normal(level, 0.3, clusters)
    ids = [str(k) for k in range(clusters)]
    return pd.DataFrame({"protocol": "p", "id": ids, "cluster": ids, "nll": values})


def test_swapping_ce_and_oracle_mirrors_the_share():
    generator = np.random.default_rng(0)
    ce, own, oracle = (bootstrap_mean(rows(generator, level), "nll", 500) for level in (1.0, 0.7, 0.4))
    one, other = recovered(ce, own, oracle, True, 0.95), recovered(oracle, own, ce, True, 0.95)
    assert other.interval.value == pytest.approx(1.0 - one.interval.value)
    assert (other.interval.low, other.interval.high) == pytest.approx((1.0 - one.interval.high, 1.0 - one.interval.low))
    assert one.resolved


def test_the_share_does_not_depend_on_the_unit_or_the_direction():
    generator = np.random.default_rng(1)
    frames_ = [rows(generator, level) for level in (1.0, 0.7, 0.4)]
    plain = recovered(*(bootstrap_mean(f, "nll", 500) for f in frames_), True, 0.95).interval
    turned = recovered(*(bootstrap_mean(f.assign(nll=5 - 100 * f["nll"]), "nll", 500) for f in frames_), True, 0.95).interval
    assert (turned.value, turned.low, turned.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_no_gap_no_share():
    same = bootstrap_mean(rows(np.random.default_rng(2), 1.0), "nll", 100)
    other = bootstrap_mean(rows(np.random.default_rng(3), 0.5), "nll", 100)
    assert recovered(same, other, same, False, 0.95) is None


def test_a_gap_that_is_not_resolved_is_said_and_gets_no_interval(planted_copy):
    for name in ("scores.parquet", "diagnostics.parquet"):
        frame = pd.read_parquet(planted_copy / name)
        rest, ce = frame[frame["student"] != ORACLE], frame[frame["student"] == "ce"]
        changed = ce.assign(student=ORACLE)
        if name == "diagnostics.parquet":
            changed["nll"] = changed["nll"] + np.random.default_rng(0).normal(0.0, 0.05, len(changed))
        pd.concat([rest, changed], ignore_index=True).to_parquet(planted_copy / name)
    estimates = Estimates(frames.load(planted_copy), resamples=200)
    found = planted(estimates)
    share = next(e for e in found.entries if e.student == GATE).shares["nll"].interval
    assert share.low is None
    assert "no stable denominator" in share.note
    table = tables.build("planted-truth", layouts()["planted-truth"], estimates)
    assert sum("unstable" in note for note in table.notes) == 3
    said = [c for c in conclusions(estimates) if "not resolved better than `ce`" in c.text]
    assert len(said) == 2  # likelihood and accuracy
    assert all(c.verdict == "unresolved" for c in said)
    assert not any("resolved above `ce`" in c.text for c in conclusions(estimates) if "Planted" in c.text)


def test_whose_oracle_it_is():
    students = ["ce", "fkl", "ce+fkl@task", "ce+rkl@task", "ce+fkl@oracle", "ce+rkl@oracle@x"]
    assert [oracle_of(s, students) for s in students[:4]] == ["ce+fkl@oracle"] * 3 + ["ce+rkl@oracle@x"]
    assert oracle_of("js", students) is None


# ---- weights ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", [GATE, "ce+fkl@analytic", ORACLE])
def test_correlations_equal_scipys_on_samples_with_an_image(planted_run, entries, student):
    (weights,) = entries[student].weights
    parts = [late_betas(planted_run, student, seed) for seed in (0, 1)]
    expected = np.mean([stats.spearmanr(p["log"], p["blind"]).statistic for p in parts])
    assert weights.blindness.value == pytest.approx(expected)
    healthy = [p[~p["blind"]] for p in parts]
    if student == ORACLE:
        assert expected == pytest.approx(-1.0)
        assert weights.noise is None  # one weight on all healthy samples
    else:
        assert weights.noise.value == pytest.approx(np.mean([stats.spearmanr(p["log"], p["noisy"]).statistic for p in healthy]))


def test_a_weight_that_knows_is_told_from_one_that_does_not(entries):
    knows, ignores = entries[GATE].weights[0], entries["ce+fkl@analytic"].weights[0]
    assert knows.blindness.high < 0
    assert ignores.blindness.low < 0 < ignores.blindness.high
    assert all(w.noise.low < 0 < w.noise.high for w in (knows, ignores))
    assert knows.blind[1] < knows.healthy[1]
    assert knows.tells_blind["all"].low > 0.5


def test_quartiles_of_late_weights(planted_run, entries):
    parts = pd.concat([late_betas(planted_run, GATE, seed) for seed in (0, 1)])
    expected = np.quantile(np.exp(parts["log"][parts["blind"]]), [0.25, 0.5, 0.75])
    assert entries[GATE].weights[0].blind == pytest.approx(tuple(expected), rel=1e-5)
    assert entries[ORACLE].weights[0].blind == (0.0, 0.0, 0.0)
    assert entries[ORACLE].weights[0].healthy == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("student", ["ce+fkl@task", "ce+fkl@fixed@lambda10"])
def test_one_weight_for_all_samples_has_a_level_and_no_correlation(entries, student):
    (weights,) = entries[student].weights
    assert not weights.per_sample
    assert weights.blindness is None and weights.noise is None  # drift between steps is no knowledge of samples
    assert weights.blind == weights.healthy
    if "lambda10" in student:
        assert weights.blind[1] == pytest.approx(10.0)


def test_a_single_channel_has_no_weight(entries):
    assert entries["fkl"].weights == ()
    assert "nll" in entries["fkl"].shares


def test_what_entropy_alone_tells_is_mann_whitneys_area(planted_run, estimates):
    found = planted(estimates)
    parts = [p for p in planted_run.glob("students/*/seed*/betas.parquet") if p.parts[-3] != "ce"]
    betas = pd.concat(pd.read_parquet(p) for p in parts)
    truth = pd.read_parquet(planted_run / "data" / "train.parquet").dropna(subset="image").set_index("id")
    seen = truth.join(betas.drop_duplicates("id").set_index("id")["teacher_entropy"], how="inner")
    for place in ("all", "gqa", "pope"):
        here = seen if place == "all" else seen[seen["benchmark"] == place]
        u = stats.mannwhitneyu(here["teacher_entropy"][here["blind"]], here["teacher_entropy"][~here["blind"]])
        area = u.statistic / (here["blind"].sum() * (~here["blind"]).sum())
        assert found.entropy_blind[place].value == pytest.approx(area)
    assert found.entropy_blind["gqa"].low > 0.5 > found.entropy_blind["pope"].high


def test_a_sample_that_the_training_data_lacks_is_named(planted_copy):
    path = planted_copy / "data" / "train.parquet"
    lost = pd.read_parquet(path)
    seen = set(pd.read_parquet(planted_copy / "students" / GATE / "seed0" / "betas.parquet")["id"])
    name = min(seen)
    lost[lost["id"] != name].to_parquet(path)
    with pytest.raises(UserError, match=f"weighs sample '{name}'"):
        planted(Estimates(frames.load(planted_copy), resamples=50))


# ---- the panel -------------------------------------------------------------------------------------------------------------


def test_the_panel_says_what_it_must(estimates):
    table = tables.build("planted-truth", layouts()["planted-truth"], estimates)
    assert [row.label for row in table.rows] == list(simulate.PLANTED)
    notes = " ".join(table.notes)
    for sentence in (
        "cannot find wrong labels", "no proof that blind samples were found", "do not cover the variation between trainings",
        "not corrected for their number", "must not be put beside published ones", "2 seeds", "one teacher",
    ):  # fmt: skip
        assert sentence in notes, sentence
    assert "n = " in table.columns[3].under
    assert "nan" not in markup.markdown_table(table).lower()


def test_csv_of_the_panel_names_what_values_are_taken_over(estimates):
    frame = tables.build("planted-truth", layouts()["planted-truth"], estimates).frame()
    over = frame.drop_duplicates("measure").set_index("measure")["protocol"]
    assert over["recovered_nll_pooled"] == "all questions"
    assert over["rho_blindness"] == "training samples"
    shares = frame[(frame["student"] == GATE) & (frame["measure"] == "recovered_nll")].iloc[0]
    assert shares["n"] > 0 and "by seed" in shares["note"]


def test_verdicts_follow_the_intervals_either_way(estimates, entries):
    told = [c for c in conclusions(estimates) if c.text.startswith("Planted truth")]
    for c in told:
        if "β is smaller where" in c.text:
            assert c.verdict == "resolved"
            assert f"`{GATE}`" in c.text and "analytic" not in c.text and "oracle" not in c.text
        if "neither resolved smaller nor larger where" in c.text:
            assert c.verdict == "unresolved" and "analytic" in c.text
    below = next(c.text for c in told if "resolved below `ce`" in c.text.lower())
    assert "`ce+fkl@fixed@lambda10` −" in below
    assert sum(c.verdict == "caveat" for c in told) == 1


def test_a_weight_that_rises_where_it_should_fall_is_said(planted_copy):
    truth = pd.read_parquet(planted_copy / "data" / "train.parquet").set_index("id")["blind"]
    for path in planted_copy.glob(f"students/{GATE}/seed*/betas.parquet"):
        frame = pd.read_parquet(path)
        frame["beta"] *= np.where(truth[frame["id"]], 4.0, 1.0).astype(np.float32)
        frame.to_parquet(path)
    found = conclusions(Estimates(frames.load(planted_copy), resamples=200))
    assert any(c.verdict == "resolved" and "β is larger where" in c.text and GATE in c.text for c in found)


def test_without_blind_samples_there_is_no_panel_and_no_sentence(planted_copy, unsaved):
    path = planted_copy / "data" / "train.parquet"
    build(planted_copy, formats=("md",), resamples=50)
    assert (planted_copy / "report" / "tables" / "planted-truth.csv").is_file()
    pd.read_parquet(path).assign(blind=False).to_parquet(path)
    build(planted_copy, formats=("md",), resamples=50)
    text = (planted_copy / "report" / "report.md").read_text()
    assert "Planted truth" not in text
    assert not list((planted_copy / "report").rglob("planted-*"))  # nor what the older report left
    build(planted_copy, formats=("md",), layouts=list(NAMES), resamples=50)
    assert "Nothing was planted in this run" in (planted_copy / "report" / "report.md").read_text()


def test_a_run_that_never_heard_of_blindness_has_no_panel(whole_run):
    with pytest.raises(Irrelevant):
        planted(Estimates(frames.load(whole_run), resamples=50))


def test_a_planted_run_without_its_training_data_says_so(planted_copy):
    (planted_copy / "data" / "train.parquet").unlink()
    with pytest.raises(Missing, match=r"data/train\.parquet") as caught:
        planted(Estimates(frames.load(planted_copy), resamples=50))
    assert not isinstance(caught.value, Irrelevant)


def test_damaged_training_data_is_named(planted_copy):
    path = planted_copy / "data" / "train.parquet"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"train\.parquet is damaged"):
        planted(Estimates(frames.load(planted_copy), resamples=50))


def test_without_an_oracle_weights_are_still_told(planted_copy):
    for name in ("scores.parquet", "diagnostics.parquet"):
        frame = pd.read_parquet(planted_copy / name)
        frame[frame["student"] != ORACLE].to_parquet(planted_copy / name)
    estimates = Estimates(frames.load(planted_copy), resamples=50)
    found = planted(estimates)
    assert found.gaps == ()
    assert any(e.weights for e in found.entries)
    table = tables.build("planted-truth", layouts()["planted-truth"], estimates)
    assert any("No share can be told" in note for note in table.notes)


def test_the_oracles_zeros_are_left_off_logarithmic_axes_with_the_reason(estimates):
    for drawing in figures.drawings():
        with style.use(style.LIGHT):
            drawing.draw(estimates, style.LIGHT)
    by_name = {d.name: d for d in figures.drawings()}
    assert any(ORACLE in note for note in by_name["beta-evolution"].notes(estimates))
    assert any("only where the teacher is not blind" in note for note in by_name["beta-trust"].notes(estimates))


def test_the_panels_tables_compile_in_latex(planted_run, tmp_path, unsaved):
    latex = shutil.which("tectonic") or shutil.which("pdflatex")
    if latex is None:
        pytest.skip("neither tectonic nor pdflatex is installed")
    build(planted_run, formats=("tex",), layouts=list(NAMES), out=tmp_path, resamples=50)
    body = "".join(rf"\input{{tables/{name}}}" for name in NAMES)
    text = (
        rf"\documentclass{{article}}\usepackage[T1]{{fontenc}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    )
    (tmp_path / "alone.tex").write_text(text)
    command = [latex, "alone.tex"] if "tectonic" in latex else [latex, "-halt-on-error", "alone.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-1500:]
