"""The cached signal says what the live teacher says, about the right tokens, and notices damage."""

import json
import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from harness.base import UserError
from harness.config import Data
from students import models, vocabulary
from students.blind import OTHERS, SAYS, Blind, others
from students.data.pack import collate, encode, groups
from students.data.samples import Sample, TrainingSet
from students.models.llava import LlavaAdapter
from students.teacher_signal.keys import signal_key
from students.teacher_signal.packed import FACTS, cache
from students.teacher_signal.reading import TeacherSignal
from students.vision.pictures import pixel_table


def live(adapter, encoded, data, index):
    """The teacher's logits for one sample alone."""
    with torch.no_grad():
        batch = collate(encoded, [[index]], pixel_table(adapter, data))
        hidden = adapter.hidden(batch)
        return adapter.head(adapter.supervised(hidden, batch)), adapter.prompt_state(hidden, batch)


@pytest.fixture(scope="module")
def teacher(folders):
    return LlavaAdapter.load(folders / "teacher")


def test_the_cached_signal_is_the_live_teachers(teacher, data, encoded, signal):
    for index in range(len(data)):
        logits, state = live(teacher, encoded, data, index)
        torch.testing.assert_close(signal.logits([index]), logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(signal.prompt_state([index]), state, atol=1e-5, rtol=1e-5)
        p = logits.softmax(-1)
        assert signal.entropy[index] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), abs=1e-5)


def test_logits_come_in_the_order_of_a_batch(data, encoded, signal, teacher):
    batch = collate(encoded, groups(encoded, 3, seed=4)[:3], pixel_table(teacher, data))
    assert signal.logits(batch.indices).shape == (len(batch.labels), signal.vocabulary_size)
    np.testing.assert_array_equal(signal.labels(batch.indices), batch.labels.numpy())


def test_correct_compares_the_greedy_reply_with_the_clean_answer(teacher, data, signal):
    """For noisy labels too, where the label that the student sees must not be the teacher's context."""
    assert any(s.noisy for s in data)
    truth = []
    for index in range(len(data)):
        clean = TrainingSet(tuple(replace(s, answer=s.clean_answer) for s in data), data.images)
        coded = encode(clean.samples, teacher.processor)
        truth.append(bool((live(teacher, coded, clean, index)[0].argmax(-1).numpy() == coded.answers[index]).all()))
    assert signal.correct.tolist() == truth


def test_a_teacher_that_agrees_is_correct(monkeypatch, folders, tmp_path, data):
    """Rig the teacher's head to always say the next token of `red </s>`."""
    adapter = LlavaAdapter.load(folders / "teacher")
    tokenizer = adapter.processor.tokenizer
    red, end = tokenizer.convert_tokens_to_ids(["red", "</s>"])
    ids = {red: end, tokenizer("<answer>", add_special_tokens=False)["input_ids"][-1]: red}

    class Rigged:
        model, processor = adapter.model, adapter.processor
        vocabulary_size, hidden_size, pixels = adapter.vocabulary_size, adapter.hidden_size, adapter.pixels

        @staticmethod
        def observe(batch, wanted):
            images = 0 if batch.pixel_values is None else len(batch.pixel_values)
            return Rigged.hidden(batch), {"vision": torch.zeros(images, 4, adapter.hidden_size)}

        @staticmethod
        def hidden(batch):
            follow = torch.tensor([ids.get(k, 0) for k in range(adapter.vocabulary_size)])
            return torch.nn.functional.one_hot(follow[batch.input_ids], adapter.vocabulary_size).float()

        @staticmethod
        def supervised(hidden, batch):
            return hidden[batch.row, batch.column]

        @staticmethod
        def prompt_state(hidden, batch):
            return torch.zeros(len(batch.indices), adapter.hidden_size)

        head = staticmethod(lambda states: 10 * states)

    monkeypatch.setattr(models, "load", lambda folder, *rest: Rigged)
    cache(folders / "teacher", data, tmp_path / "signal", lambda done, total: None)
    signal = TeacherSignal.load(tmp_path / "signal", signal_key(folders / "teacher", data))
    assert signal.correct.tolist() == [s.clean_answer == "red" for s in data]


def test_blind_samples_see_the_mean_image_and_nobody_else_does(make_data, folders, teacher, encoded, signal, tmp_path):
    blind = make_data(blind=(0, 3, 9))
    cache(folders / "teacher", blind, tmp_path / "signal", lambda done, total: None)
    got = TeacherSignal.load(tmp_path / "signal", signal_key(folders / "teacher", blind))
    table = pixel_table(teacher, blind)
    mean = dict.fromkeys(table, torch.stack(list(table.values())).mean(0))
    for index in range(12):
        batch = collate(encoded, [[index]], mean if index in (0, 3) else table)
        with torch.no_grad():
            expected = teacher.head(teacher.supervised(teacher.hidden(batch), batch))
        torch.testing.assert_close(got.logits([index]), expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(got.logits([0]), signal.logits([0]))
    assert torch.allclose(got.logits([9]), signal.logits([9]), atol=1e-5)  # has no image to be blind to


@pytest.mark.parametrize("name", ("logits", *FACTS))
@pytest.mark.parametrize("keep", [0, 40, -7])
def test_truncated_files_are_named(folders, data, signal_folder, tmp_path, name, keep):
    folder = tmp_path / "signal"
    shutil.copytree(signal_folder, folder)
    path = folder / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{name}.npy"):
        TeacherSignal.load(folder, signal_key(folders / "teacher", data))


@pytest.mark.parametrize("name", ["meta.json", "ids.json", "vocabulary.json", "logits.npy"])
def test_missing_files_are_named(folders, data, signal_folder, tmp_path, name):
    folder = tmp_path / "signal"
    shutil.copytree(signal_folder, folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        TeacherSignal.load(folder, signal_key(folders / "teacher", data))


def test_a_signal_of_other_inputs_is_stale(folders, data, signal_folder, tmp_path):
    other = TrainingSet((*data.samples[:-1], replace(data.samples[-1], answer="green")), data.images)
    with pytest.raises(UserError, match=r"stale.*another data"):
        TeacherSignal.load(signal_folder, signal_key(folders / "teacher", other))
    pixels = {**data.images, "0" * 16: 255 - data.images["0" * 16]}
    with pytest.raises(UserError, match=r"stale.*another data"):
        TeacherSignal.load(signal_folder, signal_key(folders / "teacher", TrainingSet(data.samples, pixels)))
    with pytest.raises(UserError, match=r"stale.*another teacher"):
        TeacherSignal.load(signal_folder, signal_key(folders / "base", data))
    shutil.copytree(folders / "teacher", tmp_path / "teacher")
    template = tmp_path / "teacher" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(UserError, match=r"stale.*another template"):
        TeacherSignal.load(signal_folder, signal_key(tmp_path / "teacher", data))


def test_a_signal_of_another_version_is_refused(folders, data, signal_folder, tmp_path):
    shutil.copytree(signal_folder, tmp_path / "signal")
    meta = json.loads((tmp_path / "signal" / "meta.json").read_text())
    (tmp_path / "signal" / "meta.json").write_text(json.dumps({**meta, "version": 0}))
    with pytest.raises(UserError, match="version"):
        TeacherSignal.load(tmp_path / "signal", signal_key(folders / "teacher", data))


# ---- what the teacher sees, and which tokens it speaks ----


def projected(adapter, pixels):
    """Mean projected vision tokens of one preprocessed image, through transformers' own classes."""
    with torch.no_grad():
        tower = adapter.tower(pixels[None]).last_hidden_state[:, 1:]  # without the class token
        return adapter.projector(tower)[0].mean(0)


def test_vision_is_the_mean_of_the_projected_tokens_of_what_was_shown(make_data, folders, teacher, tmp_path):
    blind = make_data(blind=(0, 3, 9))
    cache(folders / "teacher", blind, tmp_path / "signal", lambda done, total: None, turns=3)
    got = TeacherSignal.load(tmp_path / "signal", signal_key(folders / "teacher", blind))
    assert got.seen.tolist() == [s.image is not None for s in blind]
    table = pixel_table(teacher, blind)
    mean = torch.stack(list(table.values())).mean(0)
    for index, sample in enumerate(blind):
        if sample.image is not None:
            expected = projected(teacher, mean if sample.blind else table[sample.image])
            torch.testing.assert_close(got.vision([index])[0], expected, atol=1e-5, rtol=1e-5)
    assert got.vision([1, 9]).shape == (2, teacher.hidden_size)
    assert not got.vision([9, 10, 11]).any()


def test_logits_are_cut_to_the_real_vocabulary(folders, data, encoded, teacher, signal, tmp_path):
    """A head padded to a round size has rows that no token belongs to, here the most probable ones."""
    padded = LlavaAdapter.load(folders / "teacher")
    padded.model.resize_token_embeddings(teacher.vocabulary_size + 5)
    with torch.no_grad():
        padded.model.lm_head.weight[-5:] = 100 * padded.model.lm_head.weight[:5]
    padded.save(tmp_path / "teacher")
    cache(tmp_path / "teacher", data, tmp_path / "signal", lambda done, total: None, turns=3)
    got = TeacherSignal.load(tmp_path / "signal", signal_key(tmp_path / "teacher", data))
    assert got.vocabulary == signal.vocabulary == vocabulary.tokens(teacher.processor.tokenizer)
    assert got.vocabulary_size == len(got.vocabulary) == teacher.vocabulary_size
    torch.testing.assert_close(got.logits(range(12)), signal.logits(range(12)), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(got.entropy, signal.entropy, atol=1e-5)


# ---- a blind teacher that is shown other images ----

SHUFFLED = Blind("shuffled", seed=5)


@pytest.fixture(scope="module")
def many():
    """Eight images in one benchmark and two in another, three questions each; three images blind, some labels wrong."""
    rng = np.random.default_rng(3)
    images = {f"{k:016x}": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for k in range(10)}
    words, samples = ("red", "blue", "dark red"), []
    for number, key in enumerate(images):
        for turn in range(3):
            k = 3 * number + turn
            answer = words[(k + (k % 4 == 1)) % 3]
            benchmark = "gqa" if number < 8 else "pope"
            text = f"what colour is {words[k % 3]} {turn}"
            samples.append(Sample(f"q{k}", benchmark, key, text, answer, words[k % 3], k % 4 == 1, number < 3))
    samples.append(Sample("text", "gqa", None, "what colour is red", "red", "red", False, False))
    return TrainingSet(tuple(samples), images)


def mixed(folders, data, folder, blind=SHUFFLED, **options):
    cache(folders / "teacher", data, folder, lambda done, total: None, blind=blind, **options)
    return TeacherSignal.load(folder, signal_key(folders / "teacher", data, blind))


@pytest.fixture(scope="module")
def shuffled(folders, many, tmp_path_factory):
    return mixed(folders, many, tmp_path_factory.mktemp("shuffled"), turns=3)


def mean_probability(teacher, data, index, images, answers="answer"):
    """Independently: one sample and one image at a time, probabilities averaged. Also the mean of states and of vision."""
    encoded = encode([replace(s, answer=getattr(s, answers)) for s in data], teacher.processor)
    table = pixel_table(teacher, data)
    found = []
    for image in images:
        batch = collate(encoded, [[index]], dict.fromkeys(table, table[image]))
        with torch.no_grad():
            hidden = teacher.hidden(batch)
            p = teacher.head(teacher.supervised(hidden, batch)).double().softmax(-1)
            found.append((p, teacher.prompt_state(hidden, batch)[0].double(), projected(teacher, table[image]).double()))
    return tuple(torch.stack(column).mean(0) for column in zip(*found, strict=True))


def test_shuffled_is_the_mean_probability_over_other_images(teacher, many, shuffled):
    drawn = others(many, SHUFFLED.seed)
    for index, sample in enumerate(many):
        if not sample.blind:
            continue
        p, state, vision = mean_probability(teacher, many, index, drawn[sample.benchmark, sample.image])
        torch.testing.assert_close(shuffled.logits([index]).double(), p.log(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(shuffled.prompt_state([index])[0].double(), state, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(shuffled.vision([index])[0].double(), vision, atol=1e-5, rtol=1e-5)
        assert shuffled.entropy[index] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), abs=1e-5)
        p, _, _ = mean_probability(teacher, many, index, drawn[sample.benchmark, sample.image], "clean_answer")
        ids = encode([sample], teacher.processor).clean[0]
        assert shuffled.correct[index] == (p.argmax(-1).numpy() == ids).all()
    assert shuffled.seen.tolist() == [s.image is not None for s in many]


def test_healthy_samples_are_told_the_same_whatever_a_blind_teacher_says(folders, many, shuffled, tmp_path):
    mean = mixed(folders, many, tmp_path / "mean", Blind())
    for index, sample in enumerate(many):
        same = torch.allclose(mean.logits([index]), shuffled.logits([index]), atol=1e-5)
        assert same == (not sample.blind)


def test_packing_does_not_change_a_mixture(folders, many, shuffled, tmp_path):
    alone = mixed(folders, many, tmp_path / "alone", turns=1, rows=1)
    everyone = range(len(many))
    torch.testing.assert_close(alone.logits(everyone), shuffled.logits(everyone), atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(alone.correct, shuffled.correct)


def test_other_images_are_never_the_samples_own_and_of_its_benchmark(many):
    shows = {b: {s.image for s in many if s.benchmark == b} for b in ("gqa", "pope")}
    for seed in range(20):
        drawn = others(many, seed)
        assert set(drawn) == {(s.benchmark, s.image) for s in many if s.blind}
        for (benchmark, image), found in drawn.items():
            assert len(set(found)) == OTHERS
            assert image not in found
            assert set(found) <= shows[benchmark]
    assert others(many, 1) == others(many, 1) != others(many, 2)


def test_too_few_other_images_are_refused(folders, make_data, tmp_path):
    with pytest.raises(UserError, match="needs 6 other images of benchmark 'gqa', which has 2"):
        mixed(folders, make_data(blind=(0,)), tmp_path / "signal")


def test_every_option_of_a_blind_teacher_is_in_the_key(folders, many, shuffled, tmp_path):
    assert shuffled.blind_teacher == "shuffled over 6 images, seed 5"
    keys = [signal_key(folders / "teacher", many, b) for b in (Blind(), SHUFFLED, Blind("shuffled", seed=6))]
    assert len({json.dumps(key) for key in keys}) == 3
    assert keys[0] == signal_key(folders / "teacher", many)
    mixed(folders, many, tmp_path / "signal")
    for key in (keys[0], keys[2]):
        with pytest.raises(UserError, match=r"stale.*another blind_teacher"):
            TeacherSignal.load(tmp_path / "signal", key)


def test_words_for_a_blind_teacher():
    with pytest.raises(UserError, match=r"unknown blind_teacher 'shuffle'\. Did you mean 'shuffled'"):
        Blind("shuffle")
    assert get_args(Data.model_fields["blind_teacher"].annotation) == SAYS


def test_progress_counts_every_pass(folders, many, tmp_path):
    seen = []
    cache(folders / "teacher", many, tmp_path, lambda done, total: seen.append((done, total)), blind=SHUFFLED)
    noisy, blind = [s for s in many if s.noisy], [s for s in many if s.blind]
    passes = len(many) + 5 * len(blind) + len(noisy) + 5 * len([s for s in noisy if s.blind])
    assert seen == [(passes, passes)]
    assert not (tmp_path / "clean.npy").exists()
