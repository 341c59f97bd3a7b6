"""The upstream traps of docs/upstream.md: each shown as lmms-eval 0.7.3 has it, and each guarded here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import golds
import pytest
import toys

import tasks
from harness.base import UserError
from tasks import bridge, engine, replay

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "upstream.md"


@pytest.fixture
def gold(tmp_path):
    paths = golds.write(tmp_path)
    return lambda name: tasks.gold(tasks.protocol(name), paths[name.split("@")[0]])


def score(name, found, reply):
    """Score one reply to every question."""
    return tasks.score(name, [{"id": q.id, "reply": reply} for q in found.questions], found, partial=True)


def theirs(name, questions, replies):
    (reported,) = engine.run(replay.Replay(replies), bridge.build(tasks.protocol(name), questions))["results"].values()
    return {key.split(",")[0]: value for key, value in reported.items()}


# ---- the document ----------------


def test_every_trap_names_a_test_that_exists():
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) >= 25
    for row in rows:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row):
            text = (REPOSITORY / path).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), (path, name)


# ---- POPE ----------------


def test_pope_yes_ratio_is_of_the_replies(gold):
    found = gold("pope@lmms")
    assert theirs("pope@lmms", found, ["no"] * len(found.questions))["pope_yes_ratio"] == 0.5, "upstream counts the gold"
    assert score("pope@lmms", found, "no").measures["all"]["yes"] == 0.0
    assert score("pope@mean-f1", gold("pope@mean-f1"), "Yes.").measures["all"]["yes"] == 100.0


def test_pope_strict_match_is_shown_as_unparseable(gold):
    strict = score("pope@lmms", gold("pope@lmms"), "Yes.")
    assert (strict.value, strict.rows["unparseable"].all()) == (0.0, True)
    read = score("pope@accuracy", gold("pope@accuracy"), "Yes.")
    assert (read.value, read.rows["unparseable"].any()) == (50.0, False)


def test_a_reply_that_is_neither_yes_nor_no_counts_in_f1(gold):
    """Upstream drops it from precision and recall: one yes right and one reply unread is F1 1.0 there."""
    found = gold("pope@lmms")
    said = ["yes", "no", "hm", "no", "hm", "no"]
    assert theirs("pope@lmms", found, said)["pope_f1_score"] == 1.0
    replies = [{"id": q.id, "reply": reply} for q, reply in zip(found.questions, said, strict=True)]
    assert tasks.score("pope@lmms", replies, found, partial=True).measures["all"]["f1"] == pytest.approx(50.0)


# ---- MMBench ----------------


def test_mmbench_asks_no_judge(gold, monkeypatch):
    """What cannot be read goes to api.openai.com upstream, 45 s each, and becomes a random letter."""
    import requests

    def call(*args, **kwargs):
        raise AssertionError("a judge was called")

    monkeypatch.setattr(requests, "post", call)
    monkeypatch.setattr(requests.Session, "request", call)
    for name in ("mmbench@lmms", "mmbench@circular", "mmbench@vanilla"):
        first = score(name, gold(name), "I cannot tell")
        assert (first.value, first.rows["unparseable"].all()) == (0.0, True), name
        assert score(name, gold(name), "I cannot tell").rows.equals(first.rows)
    assert "static" in tasks.protocol("mmbench@lmms").task


def test_the_text_nan_is_read_as_a_missing_option(gold):
    for name in ("mmbench@circular", "mmbench@lmms"):
        found = gold(name)
        assert all(question.doc["C"] is None for question in found.questions)
        scores = score(name, found, "banana")  # upstream finds "nan" in it as well, and then nothing
        assert scores.value == 100.0, name


# ---- TextVQA ----------------


def test_textvqa_prompts_tell_capitalised_from_whole(gold):
    """Upstream lowers the rest of the question; LLaVA's own file holds the same strings, so both do here."""
    (question, _) = gold("textvqa@lmms").questions
    question.doc["question"] = "what does the IBM sign say?"
    for name in ("textvqa@lmms", "textvqa@no-ocr", "textvqa@ocr"):
        prompts = tasks.prompts(tasks.protocol(name), tasks.QuestionSet((question,), {}, "x"))
        assert prompts[0].startswith("What does the ibm sign say?\n")


def test_logged_targets_are_the_gold_not_the_word_answer(gold):
    found = gold("textvqa@lmms")
    results = engine.run(replay.Replay(["stop", "stop"]), bridge.build(tasks.protocol("textvqa@lmms"), found))
    (samples,) = results["samples"].values()
    assert {sample["target"] for sample in samples} == {"answer"}, "upstream logs the column's name"
    assert score("textvqa@lmms", found, "stop").rows["gold"].tolist() == ["stop", "stop"]


# ---- rows, pairs, lengths ----------------


def test_missing_replies_are_refused_not_scored_as_empty(gold):
    found = gold("pope@lmms")
    replies = [{"id": q.id, "reply": "yes"} for q in found.questions]
    small = tasks.protocol("pope@lmms").model_copy(
        update={"data": tasks.protocol("pope@lmms").data.model_copy(update={"rows": 6})}
    )
    with pytest.raises(UserError, match="1 of 6 questions have no reply"):
        tasks.score(small, replies[:-1], found)
    with pytest.raises(UserError, match="is None, expected text"):
        tasks.score(small, [{**replies[0], "reply": None}, *replies[1:]], found)


def test_a_limit_never_splits_a_pair_and_never_loses_a_run(gold):
    """Upstream asserts after all inference; here a limit counts clusters, and half a saved pair is left out and said."""
    found = gold("mme@lmms")
    assert len(found.limited(1).questions) == 2
    replies = [{"id": q.id, "reply": "yes"} for q in found.questions[:-1]]
    scores = tasks.score("mme@lmms", replies, found, partial=True)
    assert len(scores.rows) == 2
    assert scores.notes[-1] == "1 pairs are half answered and left out"


def test_the_digest_of_questions_sees_the_data_where_doc_hash_does_not(gold):
    found = gold("gqa@lmms")
    results = engine.run(replay.Replay(["a", "b"]), bridge.build(tasks.protocol("gqa@lmms"), found))
    (samples,) = results["samples"].values()
    assert len({sample["doc_hash"] for sample in samples}) == 1, "upstream hashes null for every document"
    rows = [dict(question.doc) for question in found.questions]
    made = [tasks.answers.assemble("gqa", "gqa@lmms", None, given, "x").digest for given in (rows, [rows[0]], rows[::-1])]
    assert len(set(made)) == 3


def test_protocols_have_versions_where_upstream_tasks_have_none(gold):
    for name in tasks.names():
        assert tasks.protocol(name).version >= 1
    task = bridge.build(tasks.protocol("textvqa@lmms"), gold("textvqa@lmms"))
    assert task.config.metadata["version"] == 1, "upstream: none, or a list that it ignores"


def test_results_hold_plain_numbers_only(gold):
    """Upstream mixes 'N/A', empty lists and numpy scalars into its results."""
    scores = score("pope@lmms", gold("pope@lmms"), "yes")
    text = json.dumps([scores.value, scores.groups, scores.measures, scores.left_out, scores.partial], allow_nan=False)
    assert json.loads(text)[0] == 50.0


def test_the_model_name_changes_nothing(gold):
    """Upstream picks prompts and decoding by the model's name: a model called llava gets another image ratio."""
    task = bridge.build(tasks.protocol("scienceqa@lmms"), toys.questions("scienceqa"))
    assert task.config.model_specific_generation_kwargs is None
    assert set(task.config.generation_kwargs) == {"max_new_tokens", "until", "do_sample", "temperature"}


# ---- no network ----------------

BLOCKED = """
import sys, time
opened = []
def watch(event, arguments):
    if event.startswith("socket."):
        opened.append(event); raise OSError(f"network use: {event} {arguments}")
sys.addaudithook(watch)
sys.path[:0] = sys.argv[1:3]
import pathlib
start = time.perf_counter()
import golds, tasks
paths = golds.write(pathlib.Path.cwd())
for name in sys.argv[3].split(","):
    protocol = tasks.protocol(name)
    gold = tasks.gold(protocol, paths[protocol.benchmark])
    for reply in ("A", "yes", "no", "hm"):
        scores = tasks.score(protocol, [{"id": q.id, "reply": reply} for q in gold.questions], gold, partial=True)
    print(name, len(scores.rows), *sorted({"torch", "lmms_eval", "transformers", "datasets", "requests"} & set(sys.modules)))
assert set(opened) <= {"socket.__new__"}, opened  # urllib3 asks on import whether IPv6 exists, and takes no for an answer
if "lmms" not in sys.argv[3]:
    assert not opened, opened
"""
OFFICIAL = [name for name in tasks.names() if tasks.protocol(name).official]


@pytest.mark.parametrize("scorer", ["published", "lmms"])
def test_no_protocol_opens_a_socket_to_score(tmp_path, scorer):
    names = [name for name in OFFICIAL if tasks.protocol(name).scorer == scorer]
    where = [str(REPOSITORY), str(REPOSITORY / "tests" / "tasks")]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *where, ",".join(names)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == names
    assert all(int(line[1]) > 0 for line in lines)
    if scorer == "published":
        assert all(len(line) == 2 for line in lines), "a published protocol imported something heavy"
