"""What the teacher says, kept in three forms: exact loses nothing, the others say how much they lose."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.base import UserError
from students import energies
from students.batch import TokenBatch
from students.bins import Bins, binned
from students.blind import Blind
from students.data.pack import groups
from students.feed import PackedFeed
from students.options import DistilOptions
from students.recipe import Variant
from students.teacher_signal import codec, errors
from students.teacher_signal.appending import Appender
from students.teacher_signal.forms import Form, Size, loss
from students.teacher_signal.keys import signal_key
from students.teacher_signal.packed import FACTS, cache
from students.teacher_signal.reading import TeacherSignal
from students.voice_live import PackedVoice

HALF, TOP = Form("half", "float16"), Form("topk", "float16", 4)
OPTIONS = DistilOptions(steps=4, rows=4, turns=3, warmup=2, betas_every=1, flush_every=5, micro_rows=2)


def spoken(count=40, width=30, scale=4.0, seed=0):
    made = scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    made[3, 5] = -torch.inf
    return made


def dynamics(out):
    return [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]


# ---- forms -----------------------------------------------------------------------------------------------------------------


def test_exact_gives_back_every_bit():
    logits = spoken()
    assert torch.equal(codec.decode(Form(), codec.encode(Form(), logits)), logits)
    half = logits.bfloat16().float()
    form = Form("exact", "bfloat16")
    found = codec.encode(form, half)
    assert found["logits"].dtype == np.uint16
    assert torch.equal(codec.decode(form, found), half)


def test_half_keeps_logits_and_not_just_probabilities():
    logits = 100 + spoken()
    found = codec.decode(HALF, codec.encode(HALF, logits))
    assert found[3, 5] == -torch.inf
    there = logits.isfinite()
    torch.testing.assert_close(found[there], logits[there], rtol=0, atol=0.02)
    assert torch.equal(found.argmax(-1), logits.argmax(-1))
    far = torch.tensor([[0.0, -1e6, -torch.inf]])
    assert codec.decode(HALF, codec.encode(HALF, far)).isfinite().tolist() == [[True, True, False]]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bins_are_the_likeliest_tokens_and_what_is_left(dtype):
    logits = spoken()
    found = codec.decode(Form("topk", dtype, 4), codec.encode(Form("topk", dtype, 4), logits))
    p = logits.double().softmax(-1)
    top = p.topk(4, -1)
    assert torch.equal(found.ids, top.indices)
    expected = torch.cat([top.values, 1 - top.values.sum(-1, keepdim=True)], -1)
    torch.testing.assert_close(found.logits.double().exp(), expected, rtol=0, atol=1e-3 if dtype == "float16" else 1e-6)
    torch.testing.assert_close(found.logits.exp().sum(-1), torch.ones(len(logits)))
    torch.testing.assert_close(binned(logits, found.ids).double().exp(), expected, rtol=0, atol=1e-6)


def test_a_form_says_what_it_takes_on_disk():
    for form in (Form(), Form("exact", "bfloat16"), HALF, TOP, Form("topk", "float32", 7)):
        arrays = codec.encode(form, spoken(10, 30))
        assert sum(array.nbytes for array in arrays.values()) == 10 * form.token_bytes(30)
        assert {n: (a.dtype, a.shape[1:]) for n, a in arrays.items()} == {
            n: (np.dtype(d), s) for n, (d, s) in codec.columns(form, 30).items()
        }
    for k in (0, 30):
        with pytest.raises(UserError, match="allowed: 1 to 29"):
            Form("topk", "float16", k).check(30)


@pytest.mark.parametrize("form", [HALF, TOP, Form("topk", "float32", 29)])
def test_errors_are_those_of_the_distributions(form):
    """Measured in parts, against a direct computation of all at once."""
    logits = spoken()
    measured = errors.Errors(form, len(logits), logits.shape[1])
    for part in logits.split(7):
        measured.add(part, codec.encode(form, part))
    found = measured.result()
    kept = codec.decode(form, codec.encode(form, logits))
    log_p = logits.double().log_softmax(-1)
    exact = log_p if isinstance(kept, torch.Tensor) else binned(logits.double(), kept.ids)
    stored = (kept if isinstance(kept, torch.Tensor) else kept.logits).double().log_softmax(-1)
    both = exact.isfinite() & stored.isfinite()
    gap = torch.where(both, (exact - stored).abs(), 0.0)
    assert found["tokens"] == len(logits)
    assert found["log_p"]["max"] == pytest.approx(gap.max().item())
    assert found["log_p"]["mean"] == pytest.approx((gap.sum() / both.sum()).item())
    divergence = (exact.exp() * torch.where(both, exact - stored, 0.0)).sum(-1).mean().item()
    assert found["kl"]["mean"] == pytest.approx(divergence, abs=1e-9)
    if isinstance(kept, Bins):
        rest = 1 - log_p.exp().gather(-1, kept.ids).sum(-1)
        assert found["rest"]["mean"] == pytest.approx(rest.mean().item(), abs=1e-9)
        even = rest[:, None] / (logits.shape[1] - kept.ids.shape[1])
        guess = torch.full_like(log_p, 1.0).mul(even).scatter(-1, kept.ids, log_p.exp().gather(-1, kept.ids))
        lost = (log_p.exp() * torch.where(log_p.isfinite(), log_p - guess.log(), 0.0)).sum(-1).mean()
        assert found["kl_even_rest"]["mean"] == pytest.approx(lost.item(), abs=1e-7)
    fkl, nothing = energies.build("fkl"), torch.zeros(len(logits), dtype=torch.int64)
    exact_loss = fkl(TokenBatch(logits / 2, logits, nothing, nothing)).mean().item()
    assert found["losses"]["fkl"]["softer"]["exact"] == pytest.approx(exact_loss, rel=1e-6)
    assert found["losses"]["fkl"]["softer"]["kept"] <= exact_loss + 1e-3
    assert "|d log p| at most" in loss(found)


def test_errors_go_on_after_an_interruption():
    logits = spoken(200, 300)
    whole, split = (errors.Errors(HALF, 10**6, 300) for _ in range(2))
    assert whole.stride > 1
    for number, part in enumerate(logits.split(33)):
        whole.add(part, codec.encode(HALF, part))
        if number == 3:
            state = json.loads(json.dumps(split.state()))
            split = errors.Errors(HALF, 10**6, 300)
            split.restore(state)
        split.add(part, codec.encode(HALF, part))
    assert whole.result() == split.result()
    assert whole.measured == math.ceil(200 / whole.stride)


def test_an_array_that_grows_is_a_numpy_file(tmp_path):
    path = tmp_path / "a.npy"
    array = Appender(path, np.float16, (3,))
    array.add(np.ones((2, 3)))
    array.flush()
    array.add(np.full((4, 3), 2.0))  # never flushed by the one that is killed
    array._file.flush()
    array._file.close()
    again = Appender(path, np.float16, (3,), rows=2)
    for _ in range(1000):
        again.add(np.full((11, 3), 3.0))
    assert again.finish() == [11002, 3]
    assert np.load(path).shape == (11002, 3)
    assert np.load(path, mmap_mode="r")[1:3].tolist() == [[1.0] * 3, [3.0] * 3]
    with pytest.raises(UserError, match="cut off"):
        Appender(path, np.float16, (3,), rows=20000)


# ---- packed samples --------------------------------------------------------------------------------------------------------


def made(folders, data, folder, form, **options):
    cache(folders / "teacher", data, folder, lambda *_: None, turns=3, form=form, **options)
    return TeacherSignal.load(
        folder, signal_key(folders / "teacher", data, **{k: v for k, v in options.items() if k != "rows"})
    )


@pytest.fixture(scope="module")
def forms(folders, data, tmp_path_factory):
    where = tmp_path_factory.mktemp("forms")
    return {form.name: made(folders, data, where / form.name, form) for form in (HALF, TOP)}


def test_half_and_bins_are_roundings_of_the_exact_signal(data, signal, forms):
    everyone = range(len(data))
    exact = signal.logits(everyone)
    torch.testing.assert_close(forms["half"].logits(everyone).log_softmax(-1), exact.log_softmax(-1), rtol=0, atol=5e-3)
    found = forms["topk"].logits(everyone)
    torch.testing.assert_close(found.logits.exp(), binned(exact, found.ids).exp(), rtol=0, atol=1e-3)
    for form in forms.values():
        for name in ("entropy", "correct", "prompt", "seen", "offsets"):
            np.testing.assert_array_equal(getattr(form, name), getattr(signal, name))
        assert form.errors["tokens"] == len(exact)
        assert form.vocabulary_size == signal.vocabulary_size
    assert signal.errors is None


def test_the_exact_signal_is_bit_for_bit_that_of_a_live_teacher_in_the_same_batch(folders, data, signal_folder, tmp_path):
    found = made(folders, data, tmp_path / "said", None, rows=100)
    cpu = torch.device("cpu")
    voice = PackedVoice(folders / "teacher", data, Blind(), cpu, torch.float32)
    members = groups(voice.teacher.encoded, 3)
    members.sort(key=lambda row: sum(len(voice.teacher.encoded.prompts[k]) for k in row))
    feed = PackedFeed(data, voice.teacher.encoded, OPTIONS, 0, voice.adapter)
    part = feed.part(members)
    said = voice.hear(part, part.batch, {}, record=True, states=True)
    indices = part.batch.indices
    assert torch.equal(found.logits(indices), said.logits)
    assert torch.equal(found.prompt_state(indices), said.prompt)
    assert torch.equal(found.vision(indices), said.vision)
    assert found.correct[list(indices)].tolist() == said.correct.tolist()


def test_a_teacher_in_bfloat16_is_kept_as_it_is(folders, data, tmp_path):
    """Two bytes a logit, and the same logits as from a pass of the same batches that keeps float32."""
    found = made(folders, data, tmp_path / "own", None, dtype="bfloat16")
    wide = made(folders, data, tmp_path / "wide", Form("exact", "float32"), dtype="bfloat16")
    assert found.form == Form("exact", "bfloat16")
    assert found.logits_array.itemsize == 2
    assert torch.equal(found.logits(range(len(data))), wide.logits(range(len(data))))


def test_a_form_is_chosen_when_its_size_is_known(folders, data, signal, tmp_path):
    sizes = []

    def choose(size):
        sizes.append(size)
        return TOP

    assert made(folders, data, tmp_path / "said", choose).form == TOP
    assert sizes == [Size(len(signal.labels_array), len(data), signal.vocabulary_size, signal.prompt.shape[1], "float32")]
    measured = sum(p.stat().st_size for p in (tmp_path / "said").iterdir())
    assert measured <= sizes[0].total(TOP)


def test_the_first_version_of_a_signal_is_still_read(folders, data, signal, signal_folder, tmp_path):
    for path in signal_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    meta = json.loads((tmp_path / "meta.json").read_text())
    old = {"version": 2, "key": meta["key"], "shapes": {name: meta["shapes"][name] for name in ("logits", *FACTS)}}
    (tmp_path / "meta.json").write_text(json.dumps(old))
    found = TeacherSignal.load(tmp_path, signal_key(folders / "teacher", data))
    assert torch.equal(found.logits([0, 5]), signal.logits([0, 5]))


def test_another_type_of_teacher_is_stale(folders, data, signal_folder):
    with pytest.raises(UserError, match=r"stale.*another dtype"):
        TeacherSignal.load(signal_folder, signal_key(folders / "teacher", data, dtype="bfloat16"))


@pytest.mark.parametrize("recipe", ["ce+fkl@instance@v", "ce+rkl+js@task"])
def test_students_learn_nearly_the_same_from_a_rounded_signal(train, forms, recipe):
    variant = Variant(weighting={"features": ["teacher_prompt", "scalars"]}) if recipe.endswith("@v") else None
    exact = dynamics(train(recipe, "exact", options=OPTIONS, variant=variant))
    half = dynamics(train(recipe, "half", options=OPTIONS, variant=variant, signal=forms["half"]))
    for one, other in zip(exact, half, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-2, abs=1e-3)
        assert other["teacher_entropy"] == one["teacher_entropy"]


def test_a_loss_over_bins_is_that_of_the_binned_distributions(train, forms, signal):
    """At the first step the student is the same: its binned loss is never larger, and zero gradient is in both."""
    variant = Variant(weighting={"features": ["teacher_scalars", "teacher_prompt"]})
    exact = train("ce+fkl+rkl@instance@v", "exact", options=OPTIONS, variant=variant)
    top = train("ce+fkl+rkl@instance@v", "top", options=OPTIONS, variant=variant, signal=forms["topk"])
    one, other = dynamics(exact)[0], dynamics(top)[0]
    assert other["loss"]["ce"] == one["loss"]["ce"]
    for channel in ("fkl", "rkl"):
        assert 0 < other["loss"][channel] <= one["loss"][channel] + 1e-4
    assert other["weight"]["fkl"] == pytest.approx(one["weight"]["fkl"], abs=1e-4)  # the gate sees the same entropies
    with np.load(top / "snapshots.npz") as file:
        assert "student_early" in file
        assert "teacher_early" not in file


@pytest.mark.parametrize(
    "recipe",
    ["ce+mse_logits", "cosine_logits", "dkd", "taid", "ctkd", "mse_probs", "cosine_probs", "adaptive_kl", "fkl@fixed@v"],
)
def test_energies_that_need_every_token_refuse_bins(train, forms, recipe):
    variant = Variant(energies={"fkl": {"temperature": 2.0}}) if recipe.endswith("@v") else None
    with pytest.raises(UserError, match=r"cannot be taken from the teacher's likeliest tokens.*exact or half.*--live-teacher"):
        train(recipe, "refused", options=OPTIONS, variant=variant, signal=forms["topk"])


def test_bins_name_tokens_that_the_student_has(train, forms):
    top = forms["topk"]
    longer = replace(top, vocabulary=(*top.vocabulary, "<tool>"))
    train("fkl", "fine", options=OPTIONS, signal=longer)
    tokens = np.array(top.more["tokens"])
    tokens[7, 2] = len(top.vocabulary)
    with pytest.raises(UserError, match=r"'<tool>', which the student does not have.*exact or half"):
        train("fkl", "refused", options=OPTIONS, signal=replace(longer, more={"tokens": tokens}))
