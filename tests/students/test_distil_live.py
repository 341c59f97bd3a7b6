"""A live teacher on packed data: the same trajectory, and the same records, as from its cached signal."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from harness.base import UserError
from students import checkpoint
from students.blind import Blind
from students.data.pack import encode
from students.data.samples import Sample, TrainingSet
from students.models.llava import LlavaAdapter
from students.options import DistilOptions
from students.recipe import Variant
from students.teacher_signal.keys import signal_key
from students.teacher_signal.packed import cache
from students.teacher_signal.reading import TeacherSignal

CACHED = DistilOptions(steps=20, rows=4, turns=3, warmup=2, betas_every=1, flush_every=5, micro_rows=2)
LIVE = CACHED.model_copy(update={"live_teacher": True})


def dynamics(out):
    return [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]


def same(cached, live):
    for one, other in zip(dynamics(cached), dynamics(live), strict=True):
        for field in ("loss", "weight", "weighted"):
            assert other[field] == pytest.approx(one[field], rel=1e-5, abs=1e-5)
        for field in ("total", "grad_norm", "teacher_entropy"):
            assert other[field] == pytest.approx(one[field], rel=1e-4, abs=1e-5)
        assert (other["samples"], other["tokens"], other["lr"]) == (one["samples"], one["tokens"], one["lr"])
    frames = [pd.read_parquet(out / "betas.parquet") for out in (cached, live)]
    for column in ("step", "id", "channel", "teacher_correct", "noisy"):
        assert list(frames[0][column]) == list(frames[1][column])
    for column in ("beta", "energy", "teacher_entropy"):
        np.testing.assert_allclose(frames[0][column], frames[1][column], rtol=1e-4, atol=1e-5)
    weights = [dict(checkpoint.tensors(out / "student" / "model.safetensors")) for out in (cached, live)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "features"),
    [
        ("ce+fkl@instance@v", ["teacher_prompt", "teacher_vision", "scalars"]),
        ("ce+cosine_probs+fd@task", None),
        ("ce+taid@famo", None),
    ],
)
def test_a_live_teacher_gives_the_trajectory_of_the_cached_one(train, recipe, features):
    variant = Variant(weighting={"features": features}) if features else None
    cached = train(recipe, "cached", options=CACHED, variant=variant)
    live = train(recipe, "live", options=LIVE, variant=variant, signal=None)
    same(cached, live)
    assert json.loads((live / "cost.json").read_text())["teacher_passes_shared"] == 0
    assert json.loads((live / "cost.json").read_text())["teacher_passes_own"] > 0


@pytest.mark.parametrize("blind", [Blind(), Blind("shuffled", 3)])
def test_blind_samples_hear_what_the_signal_would_say(train, folders, make_data, tmp_path, blind):
    """Also where a row has blind and seeing samples, and where an answer is the mixture of those to other images."""
    plain = make_data((0, 4, 7))
    rng = np.random.default_rng(1)
    more = {f"{k:016x}": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for k in range(3, 9)}
    extra = tuple(
        Sample(f"e{k}", "gqa", key, "what colour is red 1", "blue", "blue", False, k % 2 == 0) for k, key in enumerate(more)
    )
    data = TrainingSet((*plain.samples, *extra), {**plain.images, **more})
    encoded = encode(data.samples, LlavaAdapter.load(folders / "base").processor)
    cache(folders / "teacher", data, tmp_path / "said", lambda *_: None, turns=3, blind=blind)
    signal = TeacherSignal.load(tmp_path / "said", signal_key(folders / "teacher", data, blind))
    given = {"data": data, "encoded": encoded, "variant": Variant(weighting={"features": ["teacher_prompt", "teacher_vision"]})}
    cached = train("ce+fkl@instance@v", "cached", options=CACHED, signal=signal, **given)
    live = train("ce+fkl@instance@v", "live", options=LIVE, signal=None, blind=blind, **given)
    same(cached, live)
    if blind != Blind():
        with pytest.raises(UserError, match="take energies on logits there"):
            train("fd", "refused", options=LIVE, signal=None, blind=blind, data=data, encoded=encoded)


def test_a_noisy_label_is_no_context_for_being_right(train, data, signal):
    """Samples 1 and 6 have a wrong label; the teacher is right or not about their clean answer, as in the signal."""
    betas = pd.read_parquet(train("fkl", options=LIVE, signal=None) / "betas.parquet")
    known = dict(zip(signal.ids, signal.correct, strict=True))
    for name, correct in zip(betas["id"], betas["teacher_correct"], strict=True):
        assert known[name] == correct
    assert betas["noisy"].any()


def test_labels_alone_load_no_live_teacher(train, folders):
    out = train("ce", options=LIVE, signal=None, teacher=folders / "nowhere")
    assert dynamics(out)[0]["teacher_entropy"] is None
    with np.load(out / "snapshots.npz") as file:
        assert "teacher_early" not in file


def test_a_live_teacher_must_be_there_and_fit(train, folders, tmp_path, data, encoded):
    with pytest.raises(UserError, match="needs a teacher checkpoint, because live_teacher is on"):
        train("ce+fkl", options=LIVE, signal=None, teacher=None)
    wrong = replace(encoded, answers=tuple(np.roll(a, 1) for a in encoded.answers))
    with pytest.raises(
        UserError, match=r"sample 'q\d+': student and teacher learn different tokens from supervised token 1 on"
    ):
        train("ce+fkl", options=LIVE, signal=None, encoded=wrong)


def test_a_live_teacher_in_half_precision_is_near(train):
    half = LIVE.model_copy(update={"teacher_dtype": "bfloat16", "steps": 3})
    exact = dynamics(train("ce+fkl+fd@fixed", "exact", options=LIVE.model_copy(update={"steps": 3}), signal=None))
    rough = dynamics(train("ce+fkl+fd@fixed", "rough", options=half, signal=None))
    for one, other in zip(exact, rough, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05, abs=5e-3)
        assert other["loss"]["fkl"] != one["loss"]["fkl"]


def test_options_of_streams_are_refused_for_packed_rows(train):
    for update in ({"max_length": 20}, {"template": "v1"}, {"grouping": "modality_length"}):
        with pytest.raises(UserError, match="for corpora"):
            train("ce", options=CACHED.model_copy(update=update))
