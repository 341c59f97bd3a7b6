"""Scores are lmms-eval's: gold replies score full, its own aggregates agree, bad replies are refused, nothing leaks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys

import tasks
from harness.base import UserError
from tasks import bridge, engine, replay, scoring
from tasks.aggregate import aggregate

ALL = list(toys.BENCHMARKS)


def gold(questions):
    return [{"id": q.id, "reply": q.answer} for q in questions.questions]


def mixed(questions, seed=0):
    rng = random.Random(seed)
    said = [q.answer if rng.random() < 0.7 else rng.choice([*q.wrong, "hm"]) for q in questions.questions]
    return [{"id": q.id, "reply": reply} for q, reply in zip(questions.questions, said, strict=True)]


def setting(benchmark):
    return tasks.protocol(f"{benchmark}@miniature"), toys.questions(benchmark)


@pytest.mark.parametrize("benchmark", ALL)
def test_gold_replies_score_full_and_wrong_ones_nothing(benchmark):
    protocol, questions = setting(benchmark)
    best = 100.0 * len({q.group for q in questions.questions}) * 2 if benchmark == "mme" else 100.0
    full = tasks.score(protocol, gold(questions), questions)
    if benchmark == "textvqa":  # 3 of 10 people said something else on every third question
        assert (full.rows["score"] > 0.99).mean() >= 1 / 3
    else:
        assert full.value == pytest.approx(best)
    wrong = [{"id": q.id, "reply": q.wrong[0]} for q in questions.questions]
    assert tasks.score(protocol, wrong, questions).value == 0.0
    assert not full.rows["unparseable"].any()
    assert list(full.rows.columns) == list(scoring.COLUMNS)


@pytest.mark.parametrize("benchmark", ALL)
def test_our_number_is_lmms_evals_number(benchmark):
    """Recomputed here from lmms-eval's results, not through the check inside ``score``."""
    protocol, questions = (
        tasks.protocol(f"{benchmark}@miniature"),
        tasks.load(tasks.protocol(f"{benchmark}@miniature"), limit=40),
    )
    replies = mixed(questions)
    scores = tasks.score(protocol, replies, questions)
    results = engine.run(replay.Replay([row["reply"] for row in replies]), bridge.build(protocol, questions))
    (reported,) = results["results"].values()
    key = {"pope": "pope_accuracy", "mmbench": "gpt_eval_score"}.get(benchmark, "exact_match")
    if benchmark == "mme":
        expected = reported["mme_perception_score,none"] + reported["mme_cognition_score,none"]
    else:
        expected = reported[f"{key},none"] * (1 if benchmark == "mmbench" else 100)
    assert scores.value == pytest.approx(expected)
    assert protocol.range[0] < scores.value < protocol.range[1], "replies that tell nothing apart would prove nothing"


def test_pope_f1_is_lmms_evals_on_one_split():
    protocol, questions = tasks.protocol("pope@miniature"), tasks.load(tasks.protocol("pope@miniature"), limit=30)
    rng = random.Random(1)
    replies = [{"id": q.id, "reply": q.answer if rng.random() < 0.7 else q.wrong[0]} for q in questions.questions]
    for split in ("random", "popular", "adversarial"):
        part = replace(questions, questions=tuple(q for q in questions.questions if q.group == split))
        chosen = [row for row in replies if row["id"] in {q.id for q in part.questions}]
        results = engine.run(replay.Replay([row["reply"] for row in chosen]), bridge.build(protocol, part))
        (reported,) = results["results"].values()
        rows = tasks.score(protocol, chosen, part).rows
        assert aggregate(rows, "pope_mean_f1") == pytest.approx(100 * reported["pope_f1_score,none"])


def test_the_order_of_replies_does_not_matter():
    protocol, questions = setting("mme")
    replies = mixed(questions)
    one, two = tasks.score(protocol, replies, questions), tasks.score(protocol, replies[::-1], questions)
    assert one.value == two.value
    assert one.rows.equals(two.rows)


def test_groups_are_the_same_aggregation_over_a_part():
    protocol, questions = setting("mme")
    scores = tasks.score(protocol, mixed(questions), questions)
    assert sum(scores.groups.values()) == pytest.approx(scores.value)
    protocol, questions = setting("pope")
    scores = tasks.score(protocol, mixed(questions), questions)
    assert np.mean(list(scores.groups.values())) == pytest.approx(scores.value)


def test_bad_replies_are_refused_with_the_id():
    protocol, questions = setting("gqa")
    replies = gold(questions)
    cases = {
        "1 of 6 questions have no reply, first 'g5'": replies[:-1],
        "two replies to question 'g0'": [*replies, replies[0]],
        "unknown question id 'g77'; did you mean 'g0'|unknown question id 'g77'": [*replies, {"id": "g77", "reply": "x"}],
        "the reply to 'g0' is None": [{"id": "g0", "reply": None}, *replies[1:]],
        "needs the fields id and reply": [{"id": "g0"}, *replies[1:]],
        "'g0' was made for another prompt": [{**replies[0], "prompt_sha256": "0" * 64}, *replies[1:]],
    }
    for message, given in cases.items():
        with pytest.raises(UserError, match=message):
            tasks.score(protocol, given, questions)


def test_a_disagreement_with_lmms_eval_stops_everything(monkeypatch):
    protocol, questions = setting("gqa")
    monkeypatch.setattr(scoring.aggregate, "aggregate", lambda rows, aggregation: 12.0)
    with pytest.raises(RuntimeError, match="lmms-eval reports 100"):
        tasks.score(protocol, gold(questions), questions)


def test_a_protocol_without_lmms_evals_metric_is_not_compared():
    protocol, questions = setting("pope")
    mean_f1 = protocol.model_copy(update={"metrics": (), "aggregation": "pope_mean_f1"})
    always = [{"id": q.id, "reply": "yes"} for q in questions.questions]
    assert tasks.score(mean_f1, always, questions).value == pytest.approx(100 * 2 / 3)
    assert tasks.score(protocol, always, questions).value == pytest.approx(50.0)


# ---- what lmms-eval would score wrongly without a word ----------------


def change(questions, number, **cells):
    changed = list(questions.questions)
    changed[number] = replace(changed[number], doc={**changed[number].doc, **cells})
    return replace(questions, questions=tuple(changed))


def test_the_text_nan_is_no_option():
    protocol, questions = setting("mmbench")
    with pytest.raises(UserError, match="C is the text 'nan'"):
        tasks.score(protocol, gold(questions), change(questions, 4, C="nan"))


def test_rotations_without_their_base_question_would_not_count():
    protocol, questions = setting("mmbench")
    part = replace(questions, questions=questions.questions[1:])
    with pytest.raises(UserError, match="group 11 has rotations but no base question"):
        tasks.score(protocol, gold(part), part)


def test_clusters_must_be_the_groups_of_rotations():
    protocol, questions = setting("mmbench")
    split = replace(questions, questions=(replace(questions.questions[0], cluster="other"), *questions.questions[1:]))
    with pytest.raises(UserError, match="clusters are not the groups"):
        tasks.score(protocol, gold(split), split)


def test_an_unknown_mme_category_would_count_as_cognition():
    protocol, questions = setting("mme")
    with pytest.raises(UserError, match="category 'ocr'; known: OCR"):
        tasks.score(protocol, gold(questions), change(questions, 0, category="ocr"))


def test_half_an_mme_pair_is_refused_before_anything_runs():
    protocol, questions = setting("mme")
    part = replace(questions, questions=questions.questions[:-1])
    with pytest.raises(UserError, match="not 2 in 1"):
        tasks.score(protocol, gold(part), part)


def test_a_missing_column_is_refused():
    protocol, questions = setting("scienceqa")
    kept = [replace(q, doc={k: v for k, v in q.doc.items() if k != "hint"}) for q in questions.questions]
    bare = replace(questions, questions=tuple(kept))
    with pytest.raises(UserError, match="'s0' lacks the column\\(s\\) hint"):
        tasks.score(protocol, gold(bare), bare)


# ---- constant answers ----------------


def test_constant_levels():
    assert tasks.constant_level(*setting("pope")) == ("no", 50.0)
    assert tasks.constant_level(*setting("mmbench")) == ("A", 0.0)
    answer, value = tasks.constant_level(*setting("mme"))
    assert (answer, value) == ("no", 150.0)
    protocol, questions = setting("gqa")
    skewed = replace(questions, questions=questions.questions[:5])
    assert tasks.constant_level(protocol, skewed) == ("yellow", pytest.approx(60.0))


@pytest.mark.parametrize("benchmark", ALL)
def test_the_constant_level_is_what_its_replies_score(benchmark):
    protocol, questions = setting(benchmark)
    answer, value = tasks.constant_level(protocol, questions)
    replies = [{"id": q.id, "reply": answer} for q in questions.questions]
    assert tasks.score(protocol, replies, questions).value == pytest.approx(value)


# ---- nothing leaks ----------------


def test_scoring_leaves_the_process_as_it_was(capsys):
    import loguru

    random.seed(7)  # not a state that an earlier run may have left
    loud = []
    sink = loguru.logger.add(loud.append, level="INFO")
    state, filters, numbers = random.getstate(), list(warnings.filters), np.random.get_state()[1].tolist()  # noqa: NPY002
    for benchmark in ("mmbench", "mme"):
        protocol, questions = setting(benchmark)
        tasks.score(protocol, mixed(questions), questions)
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == numbers  # noqa: NPY002
    assert warnings.filters == filters
    assert loud == []
    loguru.logger.info("still heard")
    loguru.logger.remove(sink)
    assert len(loud) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "it/s" not in captured.err


BLOCKED = """
import random, sys, warnings
opened = []
def watch(event, arguments):
    if event.startswith("socket."):
        opened.append(event); raise OSError(f"network use: {event} {arguments}")
sys.addaudithook(watch)
before = list(warnings.filters)
import loguru
heard = []
loguru.logger.add(heard.append)
import filelock, ssl
lock, reduce = filelock.FileLock, ssl.SSLContext.__reduce__
sys.path.insert(0, sys.argv[1])
import tasks
assert not {"torch", "lmms_eval", "transformers", "datasets"} & set(sys.modules), "import tasks is heavy"
for name in [n for n in tasks.names() if n.endswith("@miniature")]:
    protocol = tasks.protocol(name)
    assert "torch" not in sys.modules, "reading a protocol is heavy"
for name in [n for n in tasks.names() if n.endswith("@miniature")]:
    protocol = tasks.protocol(name)
    questions = tasks.load(protocol, limit=14)
    replies = [{"id": q.id, "reply": random.choice([q.answer, "A"])} for q in questions.questions]
    scores = tasks.score(protocol, replies, questions)
    print(name, len(scores.rows), scores.value)
from PIL import ImageFile
assert not ImageFile.LOAD_TRUNCATED_IMAGES
assert [f for f in before if f not in warnings.filters] == [], "warning filters were dropped"
assert ("ignore", None, Warning, None, 0) not in warnings.filters, "every warning is silenced"
assert ssl.SSLContext.__reduce__ is reduce
a, b = filelock.FileLock("x.lock"), filelock.FileLock("x.lock")
assert a is not b, "file locks became singletons"
loguru.logger.warning("kept"); assert any("kept" in str(m) for m in heard), "the application's log sinks were removed"
assert set(opened) <= {"socket.__new__"}, opened  # urllib3 asks on import whether IPv6 exists, and takes no for an answer
"""


def test_all_six_are_scored_with_sockets_blocked_in_a_fresh_process(tmp_path):
    """Import, loading and scoring open no socket, and none of lmms-eval's import side effects survive."""
    where = Path(tasks.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(where)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(f"{b}@miniature" for b in ALL)
    assert list(tmp_path.iterdir()) == [], "scoring left files in the working directory"


def test_a_launcher_does_not_split_the_questions(monkeypatch):
    protocol, questions = setting("gqa")
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert tasks.score(protocol, gold(questions), questions).value == 100.0
    assert os.environ["WORLD_SIZE"] == "2"


def test_an_error_in_scoring_surfaces_at_once(monkeypatch):
    """lmms-eval would retry five times over eight seconds and raise a bare RetryError."""
    protocol, questions = setting("pope")
    broken = change(questions, 3, answer="maybe")
    with pytest.raises(AssertionError):
        tasks.score(protocol, gold(broken), broken)
