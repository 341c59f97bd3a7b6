"""A corpus's signal: made in one pass, looked up in any order, cut as the student's rows are; and kept vision tokens."""

from __future__ import annotations

import json
import os
import shutil
import signal as signals
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from memory_corpus import MIXED, MemoryCorpus, asked
from twin_families import twin

from harness.base import UserError, read_json
from students import models, taps
from students.blind import Blind
from students.distil import StreamInputs, distil
from students.feed_stream import StreamFeed
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.teacher_signal import kept, streams
from students.teacher_signal.forms import Form
from students.teacher_signal.kept import KeptVision
from students.teacher_signal.keys import signal_key, stream_key
from students.teacher_signal.stream_reading import StreamSignal
from students.voice import CachedStreamVoice
from students.voice_live import StreamVoice

OPTIONS = DistilOptions(
    steps=20, rows=4, micro_rows=2, optimiser="adamw", lr=2e-3, warmup=0, betas_every=1, flush_every=10, max_length=700
)  # fmt: skip
SHORT = OPTIONS.model_copy(update={"steps": 2})
CPU = torch.device("cpu")
LONG = " ".join(["The second one is larger than the first one ."] * 4)
ROWS = [*MIXED, (("2",), (asked("What ?"), "red"), ("Why ?", LONG)), ((), (LONG, LONG))]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    where = tmp_path_factory.mktemp("llava")
    sizes = (("student", "student"), ("teacher", "teacher"))
    return tuple(twin("llava_qwen", where / name, size, seed=k) for k, (name, size) in enumerate(sizes))


@pytest.fixture(scope="module")
def corpus():
    return MemoryCorpus(ROWS)


@pytest.fixture(scope="module")
def folder(pair, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("signal")
    streams.cache(pair[1], corpus, out, lambda *_: None, rows=3)
    return out


@pytest.fixture(scope="module")
def spoken(pair, corpus, folder):
    return StreamSignal.load(folder, stream_key(pair[1], corpus))


@pytest.fixture(scope="module")
def vision(pair, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("vision")
    kept.cache_corpus(pair[1], corpus, out, lambda *_: None)
    return KeptVision(out, stream_key(pair[1], corpus))


@pytest.fixture
def run(tmp_path, pair, corpus):
    def go(recipe, name, options=OPTIONS, variant=None, seed=0, **given):
        out = tmp_path / name
        distil(parse(recipe), options, StreamInputs(pair[0], corpus, **given), seed, out, lambda *_: None, variant=variant)
        return out

    return go


def dynamics(out):
    return [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]


def part_of(pair, corpus, members, options):
    feed = StreamFeed(corpus, options, 0, *(models.load(each) for each in pair))
    try:
        return feed, feed.part(members)
    finally:
        feed.close()


@pytest.mark.parametrize("limit", [700, 60])
def test_the_signal_says_what_the_live_teacher_says(pair, corpus, spoken, limit):
    """Whole rows and rows of which the student has the first tokens alone."""
    options = OPTIONS.model_copy(update={"max_length": limit})
    members = [[8], [1], [0], [8]] if limit == 60 else [[8], [9], [2], [1], [6], [0], [8]]
    feed, part = part_of(pair, corpus, members, options)
    assert any(part.cut) == (limit == 60)
    live = StreamVoice(feed.teacher, CPU, torch.float32).hear(part, part.batch, {}, record=True, states=True)
    said = CachedStreamVoice(spoken, corpus, CPU).hear(part, part.batch, {}, record=True, states=True)
    for name in ("logits", "entropy", "prompt", "vision"):
        torch.testing.assert_close(getattr(said, name), getattr(live, name), rtol=1e-4, atol=1e-5)
    for name in ("correct", "seen"):
        assert torch.equal(getattr(said, name), getattr(live, name))


def test_the_exact_signal_is_bit_for_bit_that_of_a_live_teacher_in_the_same_batch(pair, corpus, folder, tmp_path):
    streams.cache(pair[1], corpus, tmp_path, lambda *_: None, rows=len(ROWS))
    found = StreamSignal.load(tmp_path, stream_key(pair[1], corpus))
    order = np.lexsort((np.arange(len(corpus)), corpus.lengths, corpus.shows))[::-1]
    feed, part = part_of(pair, corpus, [[int(k)] for k in order], OPTIONS)
    live = StreamVoice(feed.teacher, CPU, torch.float32).hear(part, part.batch, {}, record=True, states=True)
    said = CachedStreamVoice(found, corpus, CPU).hear(part, part.batch, {}, record=True, states=True)
    for name in ("logits", "prompt", "vision"):
        assert torch.equal(getattr(said, name), getattr(live, name))


@pytest.mark.parametrize(
    ("recipe", "features", "limit"),
    [("ce+fkl@instance@v", ["teacher_prompt", "teacher_vision", "scalars"], 700), ("ce+fd+rkl@task", None, 60)],
)
def test_the_signal_gives_the_trajectory_of_the_live_teacher(run, pair, spoken, vision, recipe, features, limit):
    variant = Variant(weighting={"features": features}) if features else None
    options = OPTIONS.model_copy(update={"max_length": limit, "overlong": "replace"})
    live = run(recipe, "live", options, variant, teacher=pair[1])
    told = run(recipe, "told", options, variant, signal=spoken, kept=vision)
    for one, other in zip(dynamics(live), dynamics(told), strict=True):
        for field in ("loss", "weight", "weighted"):
            assert other[field] == pytest.approx(one[field], rel=1e-5, abs=1e-5)
        assert other["teacher_entropy"] == pytest.approx(one["teacher_entropy"], rel=1e-4)
        assert (other["samples"], other["tokens"], other["lr"]) == (one["samples"], one["tokens"], one["lr"])
    betas = [pd.read_parquet(out / "betas.parquet") for out in (live, told)]
    for column in ("step", "id", "channel", "teacher_correct"):
        assert list(betas[0][column]) == list(betas[1][column])
    costs = [json.loads((out / "cost.json").read_text()) for out in (live, told)]
    assert [c["teacher_passes_own"] > 0 for c in costs] == [True, False]
    assert [c["teacher_passes_shared"] for c in costs] == [0, len(ROWS)]


def test_a_live_teacher_stays(run, pair, spoken):
    options = SHORT.model_copy(update={"live_teacher": True})
    out = run("ce+fkl", "live", options, signal=spoken, teacher=pair[1])
    assert json.loads((out / "cost.json").read_text())["teacher_passes_own"] == 8


@pytest.mark.parametrize("form", [Form("half", "float16"), Form("topk", "float16", 8)])
def test_other_forms_of_streams(run, pair, corpus, spoken, tmp_path, form):
    streams.cache(pair[1], corpus, tmp_path / "signal", lambda *_: None, rows=3, form=form)
    found = StreamSignal.load(tmp_path / "signal", stream_key(pair[1], corpus))
    assert found.form == form
    assert found.errors["tokens"] == len(spoken.tokens["labels"])
    exact, other = (dynamics(run("ce+fkl", name, SHORT, signal=s))[0] for name, s in (("exact", spoken), ("other", found)))
    assert other["loss"]["ce"] == exact["loss"]["ce"]
    if form.k is None:
        assert other["loss"]["fkl"] == pytest.approx(exact["loss"]["fkl"], rel=1e-3)
    else:
        assert 0 < other["loss"]["fkl"] <= exact["loss"]["fkl"]


def test_an_interrupted_pass_goes_on_to_the_same_files(pair, corpus, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "SAVE_EVERY", 2)
    child = os.fork()
    if child == 0:

        def progress(done, total):
            if done >= 9:
                os.kill(os.getpid(), signals.SIGKILL)

        try:
            streams.cache(pair[1], corpus, tmp_path, progress, rows=3)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    point = read_json(tmp_path / "point.json")
    assert point["passes"] == 2
    asked = []
    monkeypatch.setattr(MemoryCorpus, "__getitem__", lambda self, k: asked.append(k) or self.rows[k])
    streams.cache(pair[1], corpus, tmp_path, lambda *_: None, rows=3)
    assert len(asked) == len(ROWS) + len(ROWS) - 6  # counted all, then read those that were left
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in folder.iterdir()}
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["logits", "labels", "entropy", "right", "places", "prompt", "vision", "seen"])
def test_files_that_are_cut_off_are_named(pair, corpus, folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "signal")
    path = tmp_path / "signal" / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=f"{name}.npy"):
        StreamSignal.load(tmp_path / "signal", stream_key(pair[1], corpus))


def test_a_signal_of_something_else_is_stale(run, pair, corpus, folder, spoken):
    for part, key in (
        ("data", stream_key(pair[1], MemoryCorpus(ROWS[:-1]))),
        ("dtype", stream_key(pair[1], corpus, dtype="bfloat16")),
        ("limit", stream_key(pair[1], corpus, limit=100)),
        ("format", stream_key(pair[1], corpus, template="plain")),
        ("teacher", stream_key(pair[0], corpus)),
    ):
        with pytest.raises(UserError, match=f"stale.*another .*{part}"):
            StreamSignal.load(folder, key)
    (folder / "meta.json").rename(folder / "gone.json")
    with pytest.raises(UserError, match=r"meta\.json is missing"):
        StreamSignal.load(folder, stream_key(pair[1], corpus))
    (folder / "gone.json").rename(folder / "meta.json")
    with pytest.raises(UserError, match="another corpus"):
        run("ce+fkl", "other", SHORT, signal=replace(spoken, corpus="0"))


def test_a_reply_that_the_teacher_did_not_speak_about_is_named(run, spoken):
    labels = np.array(spoken.tokens["labels"])
    labels[int(spoken.rows["places"][4, 0])] += 1
    wrong = replace(spoken, tokens={**spoken.tokens, "labels": labels})
    with pytest.raises(UserError, match=r"sample 'row4': student and teacher learn different tokens from supervised token 1"):
        run("ce+fkl", "wrong", OPTIONS, signal=wrong)


def test_a_teacher_that_is_not_finite_is_named(pair, corpus, tmp_path, monkeypatch):
    frozen = taps.frozen

    def broken(*given):
        adapter = frozen(*given)
        adapter.model.lm_head.weight[3] = torch.nan
        return adapter

    monkeypatch.setattr(taps, "frozen", broken)
    with pytest.raises(FloatingPointError, match=r"the teacher is not finite on 3 row\(s\) of corpus 'memory': row6"):
        streams.cache(pair[1], corpus, tmp_path, lambda *_: None, rows=3)


# ---- vision tokens ---------------------------------------------------------------------------------------------------------


def test_what_is_not_kept_needs_a_live_teacher_and_says_how_large_it_is(run, pair, spoken, vision):
    with pytest.raises(UserError, match=r"reads vision_logits of the teacher.*vision_logits of 10 samples \(about .* GB\)"):
        run("ce+llava_kd", "refused", SHORT, signal=spoken, kept=vision)
    out = run("ce+llava_kd", "live", SHORT, signal=spoken, kept=vision, teacher=pair[1])
    assert json.loads((out / "cost.json").read_text())["teacher_passes_own"] == 8


def test_each_image_is_kept_once(pair, corpus, vision, tmp_path):
    assert vision.array.shape == (9, 16, models.load(pair[1]).hidden_size)
    adapter = models.load(pair[1])
    with torch.no_grad():
        expected = adapter.vision(adapter.pixels([corpus.picture("4"), corpus.picture("7")]))
    torch.testing.assert_close(vision.tokens(["4", "7"]), expected, rtol=1e-4, atol=1e-5)
    kept.cache_corpus(pair[1], corpus, tmp_path, lambda *_: None, dtype="bfloat16")
    half = KeptVision(tmp_path, stream_key(pair[1], corpus, dtype="bfloat16"))
    assert half.array.itemsize == 2
    assert half.tokens(["4"]).dtype == torch.bfloat16


@pytest.mark.parametrize("blind", [(), (0, 3, 9)])
def test_packed_students_read_the_kept_tokens_of_the_live_teacher(train, folders, data, make_data, signal, tmp_path, blind):
    """Also where a row has blind and seeing samples, which are shown different images."""
    from students.teacher_signal.packed import cache
    from students.teacher_signal.reading import TeacherSignal

    shown = make_data(blind) if blind else data
    said = signal
    if blind:
        cache(folders / "teacher", shown, tmp_path / "said", lambda *_: None, turns=3)
        said = TeacherSignal.load(tmp_path / "said", signal_key(folders / "teacher", shown))
    kept.cache_samples(folders / "teacher", shown, tmp_path / "kept", lambda *_: None)
    tokens = KeptVision(tmp_path / "kept", signal_key(folders / "teacher", shown))
    options = DistilOptions(steps=20, rows=4, turns=3, warmup=2, betas_every=1, flush_every=20, micro_rows=2)
    given = {"options": options, "data": shown, "signal": said}
    live = train("ce+fd@task", "live", **given)
    told = train("ce+fd@task", "told", **given, kept=tokens, teacher=None)
    for one, other in zip(dynamics(live), dynamics(told), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5, abs=1e-5)
    assert json.loads((told / "cost.json").read_text())["teacher_passes_own"] == 0


def test_mixtures_have_no_vision_tokens(folders, make_data, tmp_path):
    with pytest.raises(UserError, match="take energies on logits there"):
        kept.cache_samples(folders / "teacher", make_data((0,)), tmp_path, lambda *_: None, blind=Blind("shuffled", 3))
