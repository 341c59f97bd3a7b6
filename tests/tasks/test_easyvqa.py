"""The published easy-VQA data, on GQA's columns."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

import tasks
from harness.base import UserError
from tasks import catalogue
from tasks.sources import easyvqa

installed = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="easy-vqa is not installed (extra easyvqa)")


@installed
def test_the_test_split_is_the_published_one_and_scores():
    protocol = tasks.protocol("easyvqa@test")
    questions = tasks.load(protocol)  # rows and digest are checked
    assert len(questions.questions) == 9673
    assert len(questions.images) == 1000
    part = questions.limited(20)
    replies = [{"id": q.id, "reply": q.answer} for q in part.questions]
    assert tasks.score(protocol, replies, part).value == 100.0
    assert tasks.prompts(protocol, part)[0].endswith("\nAnswer the question using a single word or phrase.")
    assert {q.group for q in questions.questions} == {"yes/no", "shape", "color"}


@installed
def test_splits_share_no_image_and_lose_no_question():
    splits = {split: easyvqa.load("easyvqa", split) for split in easyvqa.SPLITS}
    assert sum(len(s.questions) for s in splits.values()) == 48248
    assert len(splits["dev"].images) == easyvqa.DEV_IMAGES
    clusters = {split: {q.cluster for q in found.questions} for split, found in splits.items()}
    assert not clusters["train"] & clusters["dev"]
    assert not set(splits["train"].images) & set(splits["test"].images)
    for found in splits.values():
        assert all(q.answer not in q.wrong and q.wrong for q in found.questions)


@installed
def test_training_rows_take_fewer_images():
    made = tasks.training_rows([tasks.protocol("easyvqa@test")], images=10, label_noise=0.5)
    assert len(made.images) == 10
    assert 0.3 < made.rows["noisy"].mean() < 0.7


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    def gone(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(easyvqa.importlib, "import_module", gone)
    easyvqa.load.cache_clear()
    with pytest.raises(UserError, match=r'pip install "easy-vqa==1\.0"'):
        easyvqa.load("easyvqa", "test")


@installed
def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(easyvqa.importlib.metadata, "version", lambda name: "2.0")
    easyvqa.load.cache_clear()
    with pytest.raises(UserError, match=r"easy-vqa 2\.0 is installed, expected 1\.0"):
        easyvqa.load("easyvqa", "test")


def test_unknown_names():
    with pytest.raises(UserError, match=r"unknown easy-VQA split 'tset'\. Did you mean 'test'"):
        easyvqa.load("easyvqa", "tset")
    with pytest.raises(UserError, match="unknown easy-VQA benchmark"):
        easyvqa.load("vqa", "test")
    with pytest.raises(UserError, match="images is 0"):
        easyvqa.load("easyvqa", "test", images=0)
    with pytest.raises(UserError, match=r"unknown option of the source 'easyvqa' 'image'\. Did you mean 'images'"):
        catalogue.sources.load("easyvqa", "easyvqa", "test", image=3)
    with pytest.raises(UserError, match="unknown source 'easyvq'"):
        catalogue.sources.load("easyvq", "easyvqa", "test")
