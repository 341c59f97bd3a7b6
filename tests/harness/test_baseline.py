"""The baseline file: small, exact, damaged files noticed, never written without a reason."""

import dataclasses
import json
import lzma

import gate_runs
import numpy as np
import pandas as pd
import pytest

from harness import baseline, check
from harness.base import UserError, digest_file
from reports import frames
from tasks.aggregate import aggregate


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(3)
    names = [("teacher", None), ("base", None), ("ce", 0), ("ce", 1), ("fkl", 0)]
    folder = gate_runs.write(tmp_path / "run", {name: gate_runs.drawn(rng, 12) for name in names}, clusters=12)
    return frames.load(folder)


def test_round_trip(run, tmp_path):
    made = baseline.take(run, "because")
    baseline.save(made, tmp_path / "b")
    read = baseline.load(tmp_path / "b")
    assert read.header == made.header
    assert read.codes.keys() == made.codes.keys()
    assert all(np.array_equal(read.codes[key], block) for key, block in made.codes.items())
    baseline.save(baseline.take(run, "because"), tmp_path / "again")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "again").read_bytes()


def test_every_answer_comes_back(run, tmp_path):
    baseline.save(baseline.take(run, "because"), tmp_path / "b")
    read = baseline.load(tmp_path / "b")
    columns = ["id", "cluster", "group", "gold", "prediction", "score", "seed"]
    for protocol in run.protocols:
        questions = baseline.questions_of(run, protocol.name)
        for student in run.students:
            found = read.rows(student, protocol.name, questions)[columns].sort_values(["seed", "id"])
            wanted = run.scored(student, protocol.name)[columns].sort_values(["seed", "id"])
            pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted.reset_index(drop=True), check_dtype=False)


def test_it_says_where_it_comes_from(run):
    header = baseline.take(run, "  the teacher\n was retrained ").header
    assert header.reason == "the teacher was retrained"
    assert header.git_commit == "c" * 40
    assert header.manifest == digest_file(run.folder / "manifest.json")
    assert header.protocols["pope@miniature"].data == run.manifest.protocols["pope@miniature"].digest


def test_at_most_a_byte_per_student_and_question(tmp_path):
    rng = np.random.default_rng(4)
    students = [("teacher", None), *((f"ce@{n}", 0) for n in range(9))]
    answers = {name: gate_runs.drawn(rng, 120) for name in students}
    run = frames.load(gate_runs.write(tmp_path / "run", answers, clusters=120))
    baseline.save(baseline.take(run, "size"), tmp_path / "b")
    asked = [gate_runs.questions(name, 120)["id"].tolist() for name in gate_runs.SIZE]
    ids = len(lzma.compress(json.dumps(asked).encode()))
    cells = len(students) * sum(map(len, asked))
    size = (tmp_path / "b").stat().st_size
    assert size < ids + cells  # even for answers drawn at random
    assert size < ids + cells / 4 + 1500  # a right or wrong answer holds at most a bit


def test_ids_stand_once(run):
    both = pd.concat([run.scores, run.scores[run.scores["protocol"] == "pope@miniature"].assign(protocol="pope@other")])
    other = run.protocols[1].model_copy(update={"name": "pope@other"})
    record = run.manifest.protocols["pope@miniature"]
    manifest = run.manifest.model_copy(update={"protocols": {**run.manifest.protocols, "pope@other": record}})
    twice = frames.Run(run.folder, manifest, run.digest, (*run.protocols, other), both, None)
    header = baseline.take(twice, "two protocols ask the same").header
    assert header.protocols["pope@miniature"].ids == header.protocols["pope@other"].ids
    assert header.model_dump_json().count("pope-0003-1") == 1


def _with_predictions(run, protocol, text):
    scores = run.scores.copy()
    where = scores["protocol"] == protocol
    scores.loc[where, "prediction"] = text(scores[where])
    return frames.Run(run.folder, run.manifest, run.digest, run.protocols, scores, None)


def test_many_predictions_cost_no_score(tmp_path):
    rng = np.random.default_rng(5)
    folder = gate_runs.write(tmp_path / "r", {("ce", 0): gate_runs.drawn(rng, 150, names=("gqa@miniature",))}, clusters=150)
    plain = frames.load(folder)
    run = _with_predictions(plain, "gqa@miniature", lambda rows: [f"said {n}" for n in range(len(rows))])
    made = baseline.take(run, "free text")
    assert len(made.header.protocols["gqa@miniature"].states) == 255
    rows = made.rows("ce", "gqa@miniature", baseline.questions_of(run, "gqa@miniature"))
    assert rows["score"].tolist() == run.scores.sort_values("id")["score"].tolist()
    assert 0 < (~rows["kept"]).sum() < len(rows)
    assert set(rows["prediction"][~rows["kept"]]) == {""}


def test_a_number_that_reads_predictions_is_kept_or_refused(run):
    f1 = [p.model_copy(update={"aggregation": "pope_mean_f1"}) if p.benchmark == "pope" else p for p in run.protocols]
    run = dataclasses.replace(run, protocols=tuple(f1))
    made = baseline.take(run, "F1")
    rows = made.rows("fkl", "pope@miniature", baseline.questions_of(run, "pope@miniature"))
    assert aggregate(rows, "pope_mean_f1") == aggregate(run.scored("fkl", "pope@miniature"), "pope_mean_f1")

    def padded(rows):  # a yes that is never said twice alike
        return [f"{' ' * (n // 18)}{said}{' ' * (n % 18)}" for n, said in enumerate(rows["prediction"])]

    with pytest.raises(UserError, match=r"pope@miniature.*cannot be rebuilt.*pope_mean_f1"):
        baseline.take(_with_predictions(run, "pope@miniature", padded), "too many")


def test_scores_that_no_byte_can_hold_are_refused(run):
    scores = run.scores.assign(score=np.linspace(0, 1, len(run.scores)))
    with pytest.raises(UserError, match="distinct scores; a baseline holds at most 255"):
        baseline.take(dataclasses.replace(run, scores=scores), "continuous")


def test_students_with_other_questions_are_refused(run):
    lost = run.scores[~((run.scores["student"] == "fkl") & (run.scores["id"] == "gqa-0001-1"))]
    with pytest.raises(UserError, match="fkl seed 0 answered 35 of 36 questions, not 'gqa-0001-1'"):
        baseline.take(dataclasses.replace(run, scores=lost), "lost one")
    twice = pd.concat([run.scores, run.scores.iloc[:1]])
    with pytest.raises(UserError, match="more than once"):
        baseline.take(dataclasses.replace(run, scores=twice), "one twice")


def _rewritten(path, change):
    line, _, body = lzma.decompress(path.read_bytes()).partition(b"\n")
    line, body = change(json.loads(line), body)
    path.write_bytes(lzma.compress(json.dumps(line).encode() + b"\n" + body))


DAMAGE = {
    "not readable as xz": lambda path: path.write_bytes(b"plain text"),
    "no baseline, or damaged": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "first line is not JSON": lambda path: path.write_bytes(lzma.compress(b"hello\n")),
    "version": lambda path: _rewritten(path, lambda line, body: (line | {"version": 2}, body)),
    "unknown field 'extra'": lambda path: _rewritten(path, lambda line, body: (line | {"extra": 1}, body)),
    "cut short": lambda path: _rewritten(path, lambda line, body: (line, body[:-1])),
    "bytes of answers": lambda path: _rewritten(path, lambda line, body: (line, body + b"\0")),
    "out of range": lambda path: _rewritten(path, lambda line, body: (line, b"\xff" + body[1:])),
    "lacks the question ids": lambda path: _rewritten(path, lambda line, body: (line | {"ids": {}}, body)),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_noticed(run, tmp_path, message):
    path = tmp_path / "b"
    baseline.save(baseline.take(run, "whole"), path)
    DAMAGE[message](path)
    with pytest.raises(UserError, match=message) as error:
        baseline.load(path)
    assert str(path) in str(error.value)


def test_update_needs_a_reason(run, tmp_path):
    path = tmp_path / "b"
    for reason, message in ((None, "--update needs --reason TEXT"), ("  ", "--reason is empty")):
        with pytest.raises(UserError, match=message):
            check.check(run=run.folder, baseline=path, update=True, reason=reason)
    assert not path.exists()
    assert check.check(run=run.folder, baseline=path, update=True, reason="first") == 0
    before = path.read_bytes()
    with pytest.raises(UserError, match="--reason"):
        check.check(run=run.folder, baseline=path, update=True)
    assert path.read_bytes() == before
    assert baseline.load(path).header.reason == "first"
