"""Protocols: each says exactly what is asked and scored, and says so truthfully of the data it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import toys
import yaml

import tasks
from harness.base import UnknownName, UserError
from tasks import catalogue, sources

MINIATURE = [f"{benchmark}@miniature" for benchmark in sorted(toys.BENCHMARKS)]


def test_the_six_benchmarks_and_easyvqa_are_there():
    assert set(tasks.names()) >= {*MINIATURE, "easyvqa@test"}
    assert {"miniature", "easyvqa"} <= set(sources.names())


@pytest.mark.parametrize("name", MINIATURE)
def test_the_protocol_is_true_of_its_data(name):
    protocol = tasks.protocol(name)
    questions = tasks.load(protocol)
    assert not protocol.official
    assert "miniature" in protocol.title
    assert len(questions.questions) >= 300
    groups = {question.group for question in questions.questions}
    if protocol.benchmark == "mme":
        assert protocol.range == (0, 200 * len(groups))
        assert protocol.chance == pytest.approx(75 * len(groups))  # half right, and both of a pair with probability 1/4
    elif protocol.benchmark == "scienceqa":
        chances = [100 / len(question.doc["choices"]) for question in questions.questions]
        assert protocol.chance == pytest.approx(sum(chances) / len(chances), abs=1e-4)
    elif protocol.benchmark == "mmbench":
        turns = {}
        for question in questions.questions:
            options = sum(question.doc[letter] is not None for letter in "ABCD")
            turns[question.cluster] = turns.get(question.cluster, 1.0) / options
        assert protocol.chance == pytest.approx(100 * sum(turns.values()) / len(turns))
    elif protocol.benchmark == "pope":
        assert protocol.chance == 50.0
    else:
        assert protocol.chance is None


def test_an_unknown_protocol_names_near_matches():
    with pytest.raises(UnknownName, match="Did you mean 'pope@miniature'"):
        tasks.protocol("pope@minature")
    with pytest.raises(KeyError):
        tasks.protocol("nothing")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)

    def write(name, **changes):
        facts = yaml.safe_load((Path(catalogue.__file__).parent / "protocols" / "pope@miniature.yaml").read_text())
        facts.update({"name": name}, **changes)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(facts))
        return name

    return write


def test_one_more_file_is_one_more_protocol(folder):
    folder("pope@mini-f1", aggregation="pope_mean_f1", metrics=[])
    assert tasks.names() == ["pope@mini-f1"]
    protocol = tasks.protocol("pope@mini-f1")
    questions = tasks.load(protocol, limit=5)
    replies = [{"id": q.id, "reply": q.answer} for q in questions.questions]
    assert tasks.score(protocol, replies, questions).value == 100.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agregation": "mean"}, "unknown field 'agregation'. Did you mean 'aggregation'"),
        ({"aggregation": "f2"}, "unknown aggregation 'f2'"),
        ({"generation": {"max_new_tokens": 0}}, "generation.max_new_tokens"),
        ({"generation": {"max_new_tokens": 8, "do_sample": True}}, "generation.do_sample"),
        ({"data": {"source": "minature", "split": "test"}}, "unknown source 'minature'. Did you mean 'miniature'"),
        ({"benchmark": "gqa"}, "the file name says 'pope@x'"),
    ],
)
def test_a_wrong_file_is_one_clear_error(folder, changes, message):
    folder("pope@x", **changes)
    with pytest.raises(UserError) as caught:
        tasks.protocol("pope@x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "kind"), [("prompt", "prompt"), ("parser", "parser"), ("score", "reader of scores")])
def test_unknown_code_names_are_refused_with_what_is_known(folder, field, kind):
    protocol = tasks.protocol(folder("pope@x", **{field: "nope"}))
    with pytest.raises(UnknownName, match=f"unknown {kind} 'nope'"):
        tasks.prompts(protocol, toys.questions("pope"))


def test_a_task_file_that_lmms_eval_lacks_is_refused(folder):
    protocol = tasks.protocol(folder("pope@x", task="pope/popes.yaml"))
    with pytest.raises(UnknownName, match=r"pope/pope\.yaml"):
        tasks.prompts(protocol, toys.questions("pope"))


def test_other_data_than_the_protocols_are_refused(folder):
    rows = folder("pope@rows", data={"source": "miniature", "split": "test", "rows": 7})
    with pytest.raises(UserError, match="questions, expected 7"):
        tasks.load(tasks.protocol(rows))
    other = folder("pope@digest", data={"source": "miniature", "split": "test", "digest": "0" * 64})
    with pytest.raises(UserError, match="scores would not be comparable"):
        tasks.load(tasks.protocol(other))
    assert tasks.load(tasks.protocol(other), split="dev").questions  # the digest is of the test split


def test_a_limit_counts_whole_clusters():
    for name in MINIATURE:
        protocol = tasks.protocol(name)
        full, part = tasks.load(protocol), tasks.load(protocol, limit=3)
        kept = {q.cluster for q in part.questions}
        assert len(kept) == 3
        assert [q.id for q in part.questions] == [q.id for q in full.questions if q.cluster in kept]
    with pytest.raises(UserError, match="limit is 0"):
        tasks.load(tasks.protocol("pope@miniature"), limit=0)


def test_options_cannot_change_the_protocols_own_questions():
    with pytest.raises(UserError, match="would change the protocol's own questions"):
        tasks.load(tasks.protocol("pope@miniature"), options={"images": 3})


def test_protocols_with_equal_data_prompt_and_decoding_share_replies(folder):
    plain = tasks.protocol(folder("pope@a"))
    scored_otherwise = tasks.protocol(folder("pope@b", aggregation="pope_mean_f1", metrics=[], version=2))
    shorter = tasks.protocol(folder("pope@c", generation={"max_new_tokens": 1}))
    assert plain.replies_key == scored_otherwise.replies_key != shorter.replies_key


def test_repeated_ids_and_missing_images_are_refused():
    protocol, questions = tasks.protocol("gqa@miniature"), toys.questions("gqa")
    twice = replace(questions, questions=(*questions.questions, questions.questions[0]))
    with pytest.raises(UserError, match="'g0' occurs twice"):
        tasks.prompts(protocol, twice)
    with pytest.raises(UserError, match="'g0' shows the image"):
        tasks.prompts(protocol, replace(questions, images={}))
    with pytest.raises(UserError, match="there are no questions"):
        tasks.prompts(protocol, replace(questions, questions=()))
