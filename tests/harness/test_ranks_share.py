"""Evaluation over several processes: each computes its batches, and together they are what one process computes."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

import tasks
from harness.config import model_path
from harness.stages.evaluate import Share
from students.distributed import Ranks
from tasks.bridge import requests
from tasks.lmms import CheckpointModel
from tasks.replying import learned


class Half:
    """One of two processes, here a thread; what both found is exchanged when both have come."""

    def __init__(self, rank, meeting, table):
        self.rank, self.meeting, self.table, self.computed = rank, meeting, table, []

    def mine(self, number):
        return number % 2 == self.rank

    def join(self, found):
        self.computed += [n for n in found if n >= 0]  # below are trials
        self.table[self.rank] = found
        self.meeting.wait(60)
        both = {**self.table[0], **self.table[1]}
        assert len(both) == len(self.table[0]) + len(self.table[1])  # nothing is computed twice
        self.meeting.wait(60)  # nobody writes the next before both have read this
        return both


@pytest.fixture(scope="module")
def asked():
    from students import models

    models.register()
    protocol = tasks.protocol("pope@miniature")
    return protocol, tasks.load(protocol, limit=4)


def test_the_batches_of_two_processes_are_those_of_one(asked):
    protocol, questions = asked
    pictures = [questions.images[q.image] for q in questions.questions]
    golds = [q.answer for q in questions.questions]
    built = requests(protocol, questions)

    def loaded(half=None):
        return CheckpointModel(model_path("package:students/miniature/base"), batch_size=3, share=half)

    def answered(model):
        model.task_dict[built.name] = built.documents
        return model.generate_until(list(built.instances)), model.gold_logprobs(built.prompts, pictures, golds)

    said, whole = answered(loaded())
    meeting, table = threading.Barrier(2), {}
    halves = [Half(rank, meeting, table) for rank in range(2)]
    models = [loaded(half) for half in halves]  # one after the other: transformers loads no two at once
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(answered, models))
    for replies, logs in results:
        assert [(r.text, r.token_counts) for r in replies] == [(r.text, r.token_counts) for r in said]
        assert all(np.array_equal(a, b) for a, b in zip(logs, whole, strict=True))  # bit for bit: whole batches move
    assert all(half.computed for half in halves)  # and nothing twice, see above


def test_all_processes_take_one_ones_word_for_what_a_trial_says():
    """Whether prompts may be padded decides what shares a batch, so two that disagreed would wait for other prompts."""
    meeting, table = threading.Barrier(2), {}

    def tries(rank):
        half = Half(rank, meeting, table)
        model = SimpleNamespace(mine=half.mine, joined=half.join)
        numbers = itertools.count()
        return [learned(model, numbers, lambda: rank) for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(tries, range(2))) == [[0, 1, 0], [0, 1, 0]]


def test_shares_cut_the_batches():
    shares = [Share(Ranks(rank, 3)) for rank in range(3)]
    assert [[share.mine(number) for number in range(5)] for share in shares] == [
        [True, False, False, True, False], [False, True, False, False, True], [False, False, True, False, False],
    ]  # fmt: skip


def test_one_process_joins_nothing_else():
    assert Share(Ranks()).join({3: "a", 1: "b"}) == {3: "a", 1: "b"}
