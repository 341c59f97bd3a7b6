"""Packed rows: sharing an image's tokens must not change what any single question gets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from harness.base import UserError
from students.data import pack, samples
from students.data.samples import Sample
from students.models.llava import LlavaAdapter
from students.shape import LlavaShape
from students.tokens import build_tokenizer


def pictures(n, side=60):
    rng = np.random.default_rng(0)
    return {f"i{k}": rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for k in range(n)}


def make(number, image, prompt="What color is the star?", answer="red", clean=None):
    return Sample(str(number), "gqa", image, prompt, answer, clean or answer, bool(clean), False)


PROMPTS = ("What color is the star?", "Is there a ring?", "What shape is at the top left?", "What number is written?")


@pytest.fixture(scope="module")
def adapter():
    shape = LlavaShape(hidden=32, layers=2, heads=4, intermediate=64, vision_hidden=32, vision_layers=1, initializer_range=0.3)
    return LlavaAdapter.build(shape, build_tokenizer([*PROMPTS, "red yes star"]), seed=0)


@pytest.fixture(scope="module")
def setting(adapter):
    images = pictures(3)
    answers = ["red", "yes", "star", "42"]
    made = [make(f"{i}/{k}", image, PROMPTS[k], answers[k]) for i, image in enumerate([*images, None]) for k in range(4)]
    encoded = pack.encode(made, adapter.processor)
    pixels = dict(zip(images, adapter.pixels(list(images.values())), strict=True))
    return made, encoded, pixels, images


def logits(adapter, encoded, rows, pixels):
    batch = pack.collate(encoded, rows, pixels)
    with torch.no_grad():
        return batch, adapter.head(adapter.supervised(adapter.hidden(batch), batch))


def test_a_packed_question_gets_the_logits_it_gets_alone(adapter, setting):
    made, encoded, pixels, _ = setting
    rows = pack.groups(encoded, turns=8)
    assert len(rows) == 4
    assert sorted(itertools.chain(*rows)) == list(range(len(made)))
    batch, packed = logits(adapter, encoded, rows, pixels)
    for position, index in enumerate(batch.indices):
        alone_batch, alone = logits(adapter, encoded, [[index]], pixels)
        torch.testing.assert_close(packed[batch.sample == position], alone, rtol=1e-4, atol=2e-5)
        assert batch.labels[batch.sample == position].tolist() == alone_batch.labels.tolist() == encoded.answers[index].tolist()


def test_logits_are_those_of_transformers_own_forward(adapter, setting):
    made, encoded, pixels, images = setting
    for index in (0, 3, 13):
        sample = made[index]
        content = ([{"type": "image"}] if sample.image else []) + [{"type": "text", "text": sample.prompt}]
        text = adapter.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        shown = [images[sample.image]] if sample.image else None
        inputs = adapter.processor(text=text, images=shown, return_tensors="pt", add_special_tokens=False)
        assert inputs["input_ids"][0].tolist() == encoded.prompts[index].tolist()
        with torch.no_grad():
            expected = adapter.model(**inputs).logits[0, -1]
        _, got = logits(adapter, encoded, [[index]], pixels)
        torch.testing.assert_close(got[0], expected, rtol=1e-4, atol=2e-5)


def test_labels_are_shifted_by_exactly_one(adapter, setting):
    """The state gathered for a label stands one position before the label itself."""
    _, encoded, pixels, _ = setting
    batch = pack.collate(encoded, pack.groups(encoded, 8), pixels)
    for row, column, label, sample in zip(batch.row, batch.column, batch.labels, batch.sample, strict=True):
        last = label == adapter.processor.tokenizer.eos_token_id
        first = (batch.prompt_row[sample], batch.prompt_column[sample]) == (row, column)
        if first:
            assert batch.input_ids[row, column] == adapter.processor.tokenizer.convert_tokens_to_ids("<answer>")
        if not last:
            assert batch.input_ids[row, column + 1] == label


def test_questions_see_the_prefix_and_themselves_only(setting):
    _, encoded, pixels, _ = setting
    batch = pack.collate(encoded, [pack.groups(encoded, 8)[0]], pixels)
    mask, prefix = batch.attention_mask[0, 0], encoded.prefix[0]
    assert not mask.triu(1).any()
    assert mask[-1, :prefix].all()
    assert mask.diagonal().all()
    starts = [c for c in range(prefix, mask.shape[0]) if batch.position_ids[0, c] == prefix]
    assert len(starts) == 4
    for start in starts:
        assert not mask[start, prefix:start].any()


def test_segments_questions_and_images_say_what_every_token_belongs_to(adapter, setting):
    made, encoded, pixels, _ = setting
    rows = pack.groups(encoded, 3)  # 12 samples about 3 images and 4 about none, in rows of three and of one
    batch = pack.collate(encoded, rows, pixels)
    image_token = adapter.processor.tokenizer.convert_tokens_to_ids("<image>")
    assert ((batch.segment == -1) <= (batch.input_ids == encoded.pad)).all()
    assert (batch.segment[batch.input_ids == image_token] == 0).all()
    for k, index in enumerate(batch.indices):
        row, sample = int(batch.prompt_row[k]), made[index]
        own = batch.segment[row] == batch.question[k]
        tokens = [*encoded.prompts[index][encoded.prefix[index] :], *encoded.answers[index][:-1]]
        assert batch.input_ids[row, own].tolist() == tokens
        columns = batch.text[k][batch.text[k] >= 0]
        assert columns.tolist() == torch.nonzero(own)[:, 0].tolist()
        assert batch.text_tokens[k] == len(tokens)
        assert (
            batch.input_ids[row, batch.segment[row] == 0].tolist() == encoded.prompts[index][: encoded.prefix[index]].tolist()
        )
        if sample.image is None:
            assert batch.image[k] == -1
        else:
            assert torch.equal(batch.pixel_values[batch.image[k]], pixels[sample.image])
    assert batch.text.shape[1] == max(batch.text_tokens)
    assert {int(q) for q in batch.question} == {1, 2, 3}


def test_prefixes_are_what_questions_share(adapter, setting):
    _, encoded, pixels, _ = setting
    cut = pack.prefixes(encoded)
    batch = pack.collate(cut, [[0], [4]], pixels)
    assert batch.input_ids.shape == (2, encoded.prefix[0])
    assert batch.labels.shape == (0,)
    whole = pack.collate(encoded, [[0, 1], [4]], pixels)
    with torch.no_grad():
        expected = adapter.hidden(whole)[:, : encoded.prefix[0]]
        torch.testing.assert_close(adapter.hidden(batch), expected, rtol=1e-4, atol=2e-5)


def test_rows_and_schedule_are_the_same_for_every_student_and_differ_between_seeds(setting):
    _, encoded, _, _ = setting
    rows = pack.groups(encoded, 2, seed=1)
    assert rows == pack.groups(encoded, 2, seed=1)
    assert all(len(row) <= 2 for row in rows)
    first, again, other = (list(pack.schedule(rows, 12, 3, seed)) for seed in (5, 5, 6))
    assert first == again != other
    assert len(first) == 12
    assert all(len(step) == 3 for step in first)
    one_pass = list(itertools.chain(*first))[: len(rows)]
    assert sorted(map(tuple, one_pass)) == sorted(map(tuple, rows))


def test_a_noisy_sample_keeps_its_clean_tokens_beside_the_labels(adapter):
    encoded = pack.encode([make(0, None, answer="yes", clean="42")], adapter.processor)
    batch = pack.collate(encoded, [[0]], {})
    assert batch.labels.tolist() == encoded.answers[0].tolist()
    assert batch.clean.tolist() == encoded.clean[0][: len(encoded.answers[0])].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: pack.encode([make(0, None, answer="zebra")], a.processor), "zebra"),
        (lambda a: pack.encode([make(0, None, answer="")], a.processor), "no tokens"),
        (lambda a: pack.groups(pack.encode([make(0, None)], a.processor), 0), "turns is 0"),
        (lambda a: list(pack.schedule([], 1, 1, 0)), "no training samples"),
    ],
)
def test_bad_input_is_one_clear_error(adapter, call, message):
    with pytest.raises(UserError, match=message):
        call(adapter)


def test_frames_are_checked():
    import pandas as pd

    good = pd.DataFrame([vars(make(0, "i0")), vars(make(1, None))])
    assert samples.from_frame(good, pictures(1)).samples[1].image is None
    for bad, message in (
        (good.drop(columns="prompt"), "prompt"),
        (pd.concat([good, good]), "repeat 2"),
        (good.assign(image="nowhere"), "nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            samples.from_frame(bad, pictures(1))
