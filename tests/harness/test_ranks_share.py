"""Evaluation over several processes: each computes its batches, and together they are what one process computes."""

import numpy as np
import pytest

import tasks
from harness.config import model_path
from harness.stages.evaluate import Share
from students.distributed import Ranks
from tasks.bridge import requests
from tasks.lmms import CheckpointModel
from tasks.prompting import prompts


class Half:
    """What one of two processes computes; nothing comes from the other."""

    def __init__(self, rank):
        self.rank, self.found = rank, {}

    def mine(self, number):
        return number % 2 == self.rank

    def join(self, found):
        self.found["gold" if "said" in self.found else "said"] = found
        return found


@pytest.fixture(scope="module")
def asked():
    from students import models

    models.register()
    protocol = tasks.protocol("pope@miniature")
    return protocol, tasks.load(protocol, limit=4)


def test_the_batches_of_two_processes_are_those_of_one(asked):
    protocol, questions = asked
    model = CheckpointModel(model_path("package:students/miniature/base"), batch_size=3)
    instances, task, documents = requests(protocol, questions)
    model.task_dict[task] = documents
    pictures = [questions.images[q.image] for q in questions.questions]
    golds = [q.answer for q in questions.questions]

    def answered():
        return model.generate_until(instances), model.gold_logprobs(prompts(protocol, questions), pictures, golds)

    said, whole = answered()
    halves = [Half(0), Half(1)]
    for half in halves:
        model.share = half
        answered()
    for kind, expected in (("said", said), ("gold", whole)):
        first, second = (half.found[kind] for half in halves)
        assert first and second and not first.keys() & second.keys()
        both = {**first, **second}
        assert sorted(both) == list(range(len(expected)))
        for number, value in enumerate(expected):
            if kind == "said":
                assert (both[number].text, both[number].token_counts) == (value.text, value.token_counts)
            else:
                assert np.array_equal(both[number], value)  # bit for bit: whole batches move


def test_shares_cut_the_batches():
    shares = [Share(Ranks(rank, 3)) for rank in range(3)]
    assert [[share.mine(number) for number in range(5)] for share in shares] == [
        [True, False, False, True, False], [False, True, False, False, True], [False, False, True, False, False],
    ]  # fmt: skip


def test_one_process_joins_nothing_else():
    assert Share(Ranks()).join({3: "a", 1: "b"}) == {3: "a", 1: "b"}
