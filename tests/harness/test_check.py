"""``harness.check`` as its users meet it: exit codes, what it prints and writes, and what it refuses to compare."""

import json
import shutil
import xml.etree.ElementTree as ET

import gate_runs
import numpy as np
import pandas as pd
import pytest
from test_cli import call

from harness import baseline, check, gate_output
from harness.base import UserError, read_json, read_jsonl, write_json

GIVEN = [("teacher", None), ("base", None)]
TRAINED = [("ce", 0), ("ce+fkl@instance", 0)]


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(11)
    return {name: gate_runs.drawn(rng, 60) for name in GIVEN + TRAINED}


@pytest.fixture(scope="module")
def taken(answers, tmp_path_factory):
    """A run and its baseline. Read only."""
    folder = tmp_path_factory.mktemp("gate")
    run = gate_runs.write(folder / "run", answers, clusters=60)
    check.check(run=run, baseline=folder / "b", update=True, reason="the first one")
    return folder


@pytest.fixture(scope="module")
def broken(answers, taken):
    """The same run with one student that answers POPE at random."""
    rng = np.random.default_rng(12)
    worse = {**answers["ce", 0], "pope@miniature": rng.random(360) < 0.5}
    return gate_runs.write(taken / "broken", {**answers, ("ce", 0): worse}, clusters=60)


@pytest.fixture
def copy(taken, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(taken / "run", tmp_path / "copy")


def test_an_identical_run_passes(taken, tmp_path):
    done = call("--run", taken / "run", "--baseline", taken / "b", cwd=tmp_path, module="harness.check")
    assert done.returncode == 0, done.stderr
    assert "PASS: 20 PASS, 0 FAIL, 0 INCONCLUSIVE of 20 comparisons" in done.stdout
    assert "the first one" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_broken_student_fails_and_the_questions_are_named(taken, broken, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("what another step said\n")
    files = ("--junit", "gate.xml", "--flips", "flips.jsonl", "--github")
    done = call(
        "--run", broken, "--baseline", taken / "b", *files, cwd=tmp_path, module="harness.check",
        GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "FAIL: 18 PASS, 2 FAIL, 0 INCONCLUSIVE of 20 comparisons" in done.stdout

    flips = read_jsonl(tmp_path / "flips.jsonl")
    assert {(f["student"], f["protocol"]) for f in flips} == {("ce", "pope@miniature")}
    scores = {
        name: pd.read_parquet(folder / "scores.parquet")
        .query("student == 'ce' and protocol == 'pope@miniature'")
        .set_index("id")
        for name, folder in (("old", taken / "run"), ("new", broken))
    }
    changed = scores["old"].index[scores["old"]["score"] != scores["new"]["score"]]
    assert sorted(f["id"] for f in flips) == sorted(changed)
    worse = [f for f in flips if f["after"] < f["before"]]
    assert 0 < len(worse) < len(flips)
    first = worse[0]
    assert first["baseline_prediction"] == first["gold"]
    assert first["reply"] == f"I say {scores['new'].loc[first['id'], 'prediction']}"
    assert f"worse: {first['id']}" in done.stdout
    assert first["reply"] in done.stdout

    suite = ET.parse(tmp_path / "gate.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("20", "2", "0")
    failed = {(case.get("name"), case.get("classname")): case.find("failure") for case in suite if len(case)}
    assert failed.keys() == {("ce", "pope@miniature"), ("ce", "all protocols")}
    assert all(first["id"] in failure.text for failure in failed.values())

    assert "::error title=FAIL%3A ce on pope@miniature::" in done.stdout
    text = summary.read_text()
    assert text.startswith("what another step said\n## FAIL")
    assert "| **FAIL** | `ce` | `pope@miniature` |" in text
    assert first["id"] in text


def test_too_few_questions_are_inconclusive(tmp_path):
    rng = np.random.default_rng(13)
    before = gate_runs.drawn(rng, 12)
    after = {name: gate_runs.moved(rng, right, 0.1, 0.3) for name, right in before.items()}
    old = gate_runs.write(tmp_path / "old", {("ce", 0): before}, clusters=12)
    new = gate_runs.write(tmp_path / "new", {("ce", 0): after}, clusters=12)
    assert check.check(run=old, baseline=tmp_path / "b", update=True, reason="small") == 0
    done = call("--run", new, "--baseline", tmp_path / "b", "--junit", "j.xml", cwd=tmp_path, module="harness.check")
    assert done.returncode == 3, done.stderr
    assert "questions would decide" in done.stdout
    suite = ET.parse(tmp_path / "j.xml").getroot().find("testsuite")
    assert suite.get("failures") == "0"
    assert int(suite.get("skipped")) > 0


def test_another_seed_of_the_same_recipe_does_not_fail(answers, taken, tmp_path, capsys):
    rng = np.random.default_rng(14)
    again = {name: gate_runs.moved(rng, right, 0.02, 0.1) for name, right in answers["ce", 0].items()}
    run = gate_runs.write(tmp_path / "seed1", {**{n: answers[n] for n in GIVEN + TRAINED[1:]}, ("ce", 1): again}, clusters=60)
    assert check.check(run=run, baseline=taken / "b") == 3
    assert "seeds 0 → 1" in capsys.readouterr().out


def test_what_is_compared_can_be_chosen(taken, broken):
    assert check.check(run=broken, baseline=taken / "b", students="teacher,base,ce+*") == 0
    assert check.check(run=broken, baseline=taken / "b", students="ce") == 1


def test_many_small_losses_show_in_the_mean_over_all_protocols(tmp_path, capsys):
    rng = np.random.default_rng(15)
    before = gate_runs.drawn(rng, 24)
    after = {name: gate_runs.moved(rng, right, 0.3) for name, right in before.items()}
    old = gate_runs.write(tmp_path / "old", {("ce", 0): before}, clusters=24)
    new = gate_runs.write(tmp_path / "new", {("ce", 0): after}, clusters=24)
    path = tmp_path / "wide.yaml"
    path.write_text("default: {given: 1, trained: 15}\n")
    check.check(run=old, baseline=tmp_path / "b", update=True, reason="small")
    assert check.check(run=new, baseline=tmp_path / "b", margins=path) == 1
    out = capsys.readouterr().out
    assert "FAIL ce on all protocols" in out
    assert "FAIL ce on gqa@miniature" not in out


def test_seeds_of_the_run_can_be_chosen(answers, taken, tmp_path):
    rng = np.random.default_rng(16)
    worse = {name: rng.random(len(right)) < 0.2 for name, right in answers["ce", 0].items()}
    run = gate_runs.write(tmp_path / "two", {**answers, ("ce", 1): worse}, clusters=60)
    assert check.check(run=run, baseline=taken / "b", students="ce", seeds="0") == 0
    assert check.check(run=run, baseline=taken / "b", students="ce", seeds="1") == 1
    with pytest.raises(UserError, match="holds no seed 2; it holds: 0, 1"):
        check.check(run=run, baseline=taken / "b", seeds="2")


def test_margins_of_ones_own(taken, broken, tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text("default: {given: 1, trained: 90}\n")
    assert check.check(run=broken, baseline=taken / "b", margins=path) == 0


def test_only_the_run_has_it(taken, answers, tmp_path, capsys):
    run = gate_runs.write(tmp_path / "more", {**answers, ("fkl", 0): answers["ce", 0]}, clusters=60)
    assert check.check(run=run, baseline=taken / "b") == 0
    assert "not in the baseline, not compared: fkl" in capsys.readouterr().out


def test_a_changed_environment_is_named(taken, copy, capsys):
    manifest = read_json(copy / "manifest.json")
    manifest["versions"]["torch"] = "2.14.0"
    manifest["hardware"]["processor"] = "another"
    write_json(copy / "manifest.json", manifest)
    assert check.check(run=copy, baseline=taken / "b") == 0
    assert "torch 2.13.0 → 2.14.0, processor a processor → another" in capsys.readouterr().out


# ---- errors, not comparisons ------------------------------------------------------------------------------------------------


def _edit(run, change):
    manifest = read_json(run / "manifest.json")
    change(manifest)
    write_json(run / "manifest.json", manifest)


def _scores(run, change):
    path = run / "scores.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def _other_version(held):
    protocols = {
        name: asked.model_copy(update={"version": asked.version + 1}) if name == "pope@miniature" else asked
        for name, asked in held.header.protocols.items()
    }
    return baseline.Baseline(held.header.model_copy(update={"protocols": protocols}), held.codes)


def test_another_protocol_version(taken, tmp_path):
    baseline.save(_other_version(baseline.load(taken / "b")), tmp_path / "b2")
    with pytest.raises(UserError, match=r"pope@miniature: the run is of protocol version 1, the baseline of version 2"):
        check.check(run=taken / "run", baseline=tmp_path / "b2")


def test_other_data(taken, copy):
    _edit(copy, lambda manifest: manifest["protocols"]["gqa@miniature"].update(digest="d" * 64))
    with pytest.raises(UserError, match=r"gqa@miniature: the run's data have the digest dddd"):
        check.check(run=copy, baseline=taken / "b")


REFUSED = {
    "gqa@miniature: the run answered 179 questions, the baseline 180: 1 of the baseline's are missing, first 'gqa-0003-1'": (
        lambda s: s[s["id"] != "gqa-0003-1"]
    ),
    "1 are new, first 'zzz'": lambda s: s.assign(id=s["id"].replace("gqa-0003-1", "zzz")),
    "mme@miniature: the questions have the baseline's ids, but other": (
        lambda s: s.assign(gold=s["gold"].where(s["id"] != "mme-0003-0", "perhaps"))
    ),
    "base has no scores on mmbench@miniature": (
        lambda s: s[~((s["student"] == "base") & (s["protocol"] == "mmbench@miniature"))]
    ),
    "ce seed 0 answered 179 of 180": lambda s: s[~((s["student"] == "ce") & (s["id"] == "gqa-0003-1"))],
    "more than once": lambda s: pd.concat([s, s.iloc[:1]]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_other_questions(taken, copy, message):
    _scores(copy, REFUSED[message])
    with pytest.raises(UserError) as error:
        check.check(run=copy, baseline=taken / "b")
    assert message in str(error.value)


def test_a_protocol_that_the_run_lacks(taken, copy):
    _edit(copy, lambda manifest: manifest["protocols"].pop("mme@miniature"))
    with pytest.raises(UserError, match="was not run on mme@miniature, which the baseline holds"):
        check.check(run=copy, baseline=taken / "b")


def test_lost_files_of_a_run(taken, broken, tmp_path):
    run = shutil.copytree(broken, tmp_path / "lost")
    (run / "replies" / "ce" / "seed0" / "pope@miniature.jsonl").unlink()
    with pytest.raises(UserError, match=r"pope@miniature.jsonl does not exist"):
        check.check(run=run, baseline=taken / "b")
    (run / "scores.parquet").unlink()
    with pytest.raises(UserError, match="holds no scores"):
        check.check(run=run, baseline=taken / "b")
    with pytest.raises(UserError, match="is not a run folder"):
        check.check(run=tmp_path, baseline=taken / "b")


def test_bad_command_lines(taken, tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    run, held = taken / "run", taken / "b"
    cases = {
        "--run is missing": {"baseline": held},
        "--baseline is missing": {"run": run},
        "does not exist; make it with --update": {"run": run, "baseline": tmp_path / "none"},
        "--reason says why": {"run": run, "baseline": held, "reason": "x"},
        "leave out --junit": {"run": run, "baseline": held, "update": True, "reason": "x", "junit": tmp_path / "j"},
        "Did you mean 'teacher'": {"run": run, "baseline": held, "students": "techer"},
        "GITHUB_STEP_SUMMARY is not set": {"run": run, "baseline": held, "github": True},
    }
    for message, options in cases.items():
        with pytest.raises(UserError) as error:
            check.check(**options)
        assert message in str(error.value)
    done = call("--run", run, "--baseline", held, "--update", cwd=tmp_path, module="harness.check")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Traceback" not in done.stderr


def test_replies_cannot_break_what_is_written(taken, broken, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(broken, tmp_path / "odd")
    path = run / "replies" / "ce" / "seed0" / "pope@miniature.jsonl"
    rows = [{**row, "reply": "a\n::error::x |`<b>\x00\x1b[31m"} for row in read_jsonl(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv(gate_output.SUMMARY, str(tmp_path / "s.md"))
    assert check.check(run=run, baseline=taken / "b", junit=tmp_path / "j.xml", github=True) == 1
    assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "2"
    out = capsys.readouterr().out
    assert not [line for line in out.splitlines() if line.startswith("::error::x")]
    assert "\x1b[31m" not in out
    assert "<b>" not in (tmp_path / "s.md").read_text()
