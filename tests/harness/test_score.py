"""``harness.score`` as a user meets it: what it prints, what it refuses, and how little it loads."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import harness
from harness.score import app

HOME = Path(harness.__file__).parents[1]


def call(*arguments):
    """Run the command in this process; an error surfaces as it is."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def run(*arguments, cwd, **environment):
    """Run the command as a process."""
    env = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment}
    command = [sys.executable, "-m", "harness.score", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def lines(*rows):
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def pope(tmp_path):
    """A gold folder with two splits of two pairs each, and replies to it."""
    folder = tmp_path / "labels"
    folder.mkdir()
    replies = []
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": f"i{n // 2}.jpg", "text": f"Is {split} {n} there?", "label": "yes" if n % 2 else "no"}
            for n in range(4)
        ]
        (folder / f"coco_pope_{split}.json").write_text(lines(*rows))
        said = ["No.", "Yes", "no", "\x1b[31mI see nothing" if split == "random" else "Yes, it is"]
        replies += [{"question_id": n, "category": split, "text": text} for n, text in enumerate(said)]
    path = tmp_path / "replies.jsonl"
    path.write_text(lines(*replies))
    return ["--replies", path, "--gold", folder, "--partial"]


def test_json_is_one_object_and_nothing_else(pope):
    found = json.loads(call("--protocol", "pope@mean-f1", *pope, "--json"))
    assert list(found) == ["protocol", "value", "unit", "n", "interval", "groups", "unparseable", "partial"]
    assert found["protocol"] == "pope@mean-f1"
    assert (found["unit"], found["n"], found["partial"]) == ("percent", 12, True)
    assert found["groups"] == {"adversarial": 100.0, "popular": 100.0, "random": pytest.approx(100.0)}
    low, high = found["interval"]
    assert 0 < low < high == 100


def test_several_protocols_give_a_json_list_and_the_gap(pope):
    names = ["--protocol", "pope@accuracy", "--protocol", "pope@mean-f1"]
    found = json.loads(call(*names, *pope, "--json"))
    assert [each["protocol"] for each in found] == ["pope@accuracy", "pope@mean-f1"]
    text = call(*names, *pope)
    assert "protocol gap: +0.00 percentage points (pope@accuracy against pope@mean-f1); of 12 questions" in text


def test_partial_is_stamped_on_every_line(pope):
    text = call("--protocol", "pope@mean-f1", "--protocol", "pope@accuracy", *pope)
    assert text.splitlines()
    assert all(line.startswith("PARTIAL ") for line in text.splitlines())
    assert "12 of the gold's 12 questions are scored; the protocol has 8,910" in text


def test_what_is_printed(pope, tmp_path):
    text = call("--protocol", "pope@mean-f1", *pope)
    assert "pope@mean-f1: 100.00 %, n = 12" in text
    assert "random" in text and "accuracy" in text and "recall" in text
    assert "\x1b" not in text  # a reply cannot steer the terminal


def test_unparseable_replies_are_shown_as_far_as_asked(tmp_path):
    path = tmp_path / "gold.json"
    rows = {str(n): {"question": f"Q{n}?", "answer": "cat", "imageId": f"i{n}"} for n in range(6)}
    path.write_text(json.dumps(rows))
    replies = tmp_path / "r.jsonl"
    replies.write_text(lines(*({"id": n, "reply": "" if int(n) else "cat"} for n in rows)))
    given = ["--protocol", "gqa@llava", "--replies", replies, "--gold", path, "--partial"]
    assert "unparseable: 5 of 6 replies (83.33 %)" in call(*given)
    assert "    1: ''\n" in call(*given).replace("PARTIAL ", "")
    assert "and 2 more" in call(*given)
    assert "and 4 more" in call(*given, "--limit-examples", 1)
    assert "''" not in call(*given, "--limit-examples", 0)
    assert json.loads(call(*given, "--json"))["unparseable"] == 5


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_out_writes_one_row_per_question(pope, tmp_path, suffix):
    out = tmp_path / f"rows{suffix}"
    call("--protocol", "pope@mean-f1", *pope, "--out", out)
    read = {
        ".csv": pd.read_csv,
        ".tsv": lambda path: pd.read_csv(path, sep="\t"),
        ".jsonl": lambda path: pd.read_json(path, lines=True),
        ".parquet": pd.read_parquet,
    }[suffix]
    frame = read(out)
    assert len(frame) == 12
    assert {"protocol", "id", "group", "gold", "prediction", "score", "unparseable", "reply", "partial"} <= set(frame.columns)
    assert frame["partial"].all()


def test_list_shows_every_protocol_with_a_line(tmp_path):
    import tasks

    text = " ".join(call("--list").split())
    for name in tasks.names():
        assert name in text
        assert tasks.protocol(name).title in text


BAD = {
    (): "--protocol is missing",
    ("--protocol", "pope@meanf1", "--replies", "r"): "Did you mean 'pope@mean-f1'",
    ("--protocol", "sciqa@img", "--replies", "r"): "Did you mean 'scienceqa@img'",
    ("--protocol", "pope@lmms"): "--replies is missing",
    ("--protocol", "pope@mean-f1", "--replies", "nowhere", "--gold", "gone"): "gone",
    (
        "--protocol",
        "pope@mean-f1",
        "--protocol",
        "mme@cognition",
        "--replies",
        "r",
    ): "one file of replies answers one benchmark",
    ("--protocol", "pope@mean-f1", "--replies", "r", "--out", "x.xlsx"): "suffix of --out '.xlsx'",
    ("--protocol", "pope@mean-f1", "--replies", "r", "--limit-examples", "-1"): "--limit-examples is -1",
    ("--bogus",): "No such option",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert BAD[arguments] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_help_has_examples(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "python -m harness.score --protocol mme@perception" in done.stdout


def test_counts_that_differ_are_errors_that_name_them(pope, tmp_path):
    with pytest.raises(harness.base.UserError, match="12 rows that count, the protocol 8910"):
        call("--protocol", "pope@mean-f1", *pope[:-1])


def test_missing_replies_are_named(tmp_path):
    import tasks

    questions = tasks.load(tasks.protocol("pope@miniature")).questions
    path = tmp_path / "r.jsonl"
    path.write_text(lines(*({"id": q.id, "reply": q.answer} for q in questions[4:])))
    named = ", ".join(repr(q.id) for q in questions[:3])
    with pytest.raises(harness.base.UserError, match=f"4 of 600 questions have no reply: {named}, ...; --partial"):
        call("--protocol", "pope@miniature", "--replies", path)


def test_scoring_opens_no_connection(pope, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert json.loads(call("--protocol", "pope@mean-f1", *pope, "--json"))["n"] == 12
    assert json.loads(call("--protocol", "pope@lmms", *pope, "--json"))["n"] == 12


def test_published_protocols_load_no_torch_and_no_lmms_eval(pope, tmp_path):
    """What takes seconds is not imported; the time itself is the machine's."""
    light = tmp_path / "light"
    light.mkdir()
    for name in ("torch", "transformers", "lmms_eval", "datasets", "matplotlib"):
        (light / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    given = ["--protocol", "pope@mean-f1", *pope, "--json"]
    done = run(*given, cwd=tmp_path, PYTHONPATH=f"{light}{os.pathsep}{HOME}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n"] == 12
