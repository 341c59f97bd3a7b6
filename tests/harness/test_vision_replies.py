"""Models of the embedded suite reply the same, whether their tower is run at every question or once per image."""

from pathlib import Path

import numpy as np
import pytest
import torch

import students
import tasks
from students import models
from students.vision import store
from students.vision.recall import Memory, recall
from tasks.evaluate import diagnose, evaluate
from tasks.lmms import CheckpointModel

HOME = Path(students.__file__).parent / "miniature"
PROTOCOLS = ("gqa", "scienceqa", "textvqa", "pope", "mmbench", "mme")


def asked(limit):
    protocols = [tasks.protocol(f"{name}@miniature") for name in PROTOCOLS]
    return [(protocol, tasks.load(protocol, limit=limit)) for protocol in protocols]


def keep(questions, out):
    """Store the base's features of every image that a question shows; return how many there are."""
    adapter = models.load(HOME / "base")
    shown = {q.image: found.images for _, found in questions for q in found.questions if q.image is not None}

    def pixels(keys):
        return torch.cat([adapter.pixels([shown[key][key]]) for key in keys])

    store.write(adapter, list(shown), pixels, out, lambda *_: None, content=True)
    return len(shown)


def same_replies(role, questions, stored, out, batch_size=128):
    model = CheckpointModel(HOME / role, batch_size=batch_size)
    looked = recall(model.model, model.processor, stored, Memory())[0]
    found = {}
    for short in (False, True):
        model.recall = looked if short else None
        for protocol, each in questions:
            replies = evaluate(HOME / role, protocol, each, model=model, replies_path=out / f"{role}.jsonl")
            found.setdefault(protocol.name, []).append((replies, diagnose(model, protocol, each, None).rows))
    for name, ((replies, rows), (short, fewer)) in found.items():
        assert replies == short, f"{role} says something else on {name}"
        np.testing.assert_allclose(rows["nll"], fewer["nll"], atol=1e-4)
    return looked.counts


def test_replies_are_the_same_and_no_image_of_a_question_is_computed_again(tmp_path):
    questions = asked(6)
    images = keep(questions, tmp_path / "v")
    for role in ("base", "teacher"):
        counts = same_replies(role, questions, tmp_path / "v", tmp_path)
        assert counts["computed"] == counts["remembered"] == 0
        assert counts["stored"] >= images


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "limit"), [(128, None), (7, 40)])
def test_replies_of_the_whole_suite_are_the_same(tmp_path, batch_size, limit):
    questions = asked(limit)
    keep(questions, tmp_path / "v")
    counts = same_replies("base", questions, tmp_path / "v", tmp_path, batch_size)
    assert counts["computed"] == 0
