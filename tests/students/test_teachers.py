"""The cached signal says what the live teacher says, about the right tokens, and notices damage."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.base import UserError
from students import models
from students.data.pack import collate, encode, groups
from students.data.samples import TrainingSet
from students.models.llava import LlavaAdapter
from students.teachers import TeacherSignal, cache, pixel_table, signal_key


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

    monkeypatch.setattr(models, "load", lambda folder, device: Rigged)
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


@pytest.mark.parametrize("name", ["logits", "labels", "offsets", "entropy", "correct", "prompt"])
@pytest.mark.parametrize("keep", [0, 40, -7])
def test_truncated_files_are_named(folders, data, signal_folder, tmp_path, name, keep):
    folder = tmp_path / "signal"
    shutil.copytree(signal_folder, folder)
    path = folder / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{name}.npy"):
        TeacherSignal.load(folder, signal_key(folders / "teacher", data))


@pytest.mark.parametrize("name", ["meta.json", "ids.json", "logits.npy"])
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
