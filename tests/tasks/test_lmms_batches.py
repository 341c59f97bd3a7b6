"""Batches change nothing but the time: padding, replies that go on, near ties, and what models share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys

import tasks
from harness import miniature
from tasks import batching, bridge, decoding, prepared, replying
from tasks.batching import Item
from tasks.evaluate import ask, diagnose, evaluate
from tasks.lmms import CheckpointModel
from tasks.prepared import Desks

COLOURS = ("red", "green", "blue", "yellow")


def mixed_prompts(count=24):
    """Prompts of as many lengths as there are, each with an image."""
    texts = [" ".join(["what", "color", "is", "the", "dog"][k % 5] for k in range(n + 1)) for n in range(count)]
    images = [toys.picture(n) for n in range(count)]
    answers = [" ".join(COLOURS[: 1 + n % 3]) for n in range(count)]
    return texts, images, answers


def replies_to(model, limit=6, until=("\n\n",)):
    texts, images, _ = mixed_prompts()
    made = model.desk.prompts(texts, lambda n: [images[n]])
    return [(r.text, r.token_counts.output_tokens) for r in model.replies(made, [(limit, until)] * len(texts))]


@pytest.fixture(scope="module")
def alone(checkpoint):
    return CheckpointModel(checkpoint, batch_size=1)


@pytest.fixture
def together(checkpoint):
    return CheckpointModel(checkpoint, batch_size=8)


# ---- which prompts share a pass --------------------------------------------------------------------------------------------


def test_every_prompt_is_in_one_batch_of_one_kind():
    items = [Item(n, "ab"[n % 2], n % 5) for n in range(37)]
    for batches in (batching.equal(items, 4), batching.mixed(items, 4)):
        assert sorted(n for batch in batches for n in batch) == list(range(37))
        assert all(len(batch) <= 4 and len({n % 2 for n in batch}) == 1 for batch in batches)
    assert all(len({n % 5 for n in batch}) == 1 for batch in batching.equal(items, 4))


def test_padding_is_not_worth_it_where_equal_lengths_fill_batches():
    assert not batching.worth_padding([Item(n, 0, 20 + n % 4) for n in range(400)], 64)
    assert batching.worth_padding([Item(n, 0, 20 + n) for n in range(64)], 64)
    assert not batching.worth_padding([Item(n, 0, 20 + n) for n in range(64)], 1)
    assert not batching.worth_padding([Item(n, 0, 20 + n) for n in range(8)], 8), "its trial would cost more than it saves"


# ---- padding ---------------------------------------------------------------------------------------------------------------


def test_padded_replies_are_those_of_each_prompt_alone(alone, together):
    expected = replies_to(alone)
    assert alone.how["replies"] == {"padding": "none", "made_again_alone": 0}
    assert replies_to(together) == expected
    assert together.how["replies"]["padding"] == "left"
    assert len({text for text, _ in expected}) > 3, "a model that always says the same cannot show a mix-up"


def test_padded_gold_replies_have_the_probabilities_of_each_alone(alone, together):
    found = together.gold_logprobs(*mixed_prompts())
    assert together.how["gold"] == {"padding": "right"}
    for a, b in zip(found, alone.gold_logprobs(*mixed_prompts()), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


def test_a_model_that_padding_does_not_suit_is_not_padded(alone, together):
    """Its attention sees the padding: lmms-eval issue 236, where such batches cost ten points of ScienceQA."""
    language = together.model.model.language_model
    forward = language.forward

    def blind(*args, attention_mask=None, **rest):
        return forward(*args, **rest)

    language.forward = blind
    assert replies_to(together) == replies_to(alone)
    assert together.how["replies"]["padding"] == "none"


def test_only_the_answers_logits_are_computed_where_all_are_too_many(together, monkeypatch):
    expected = together.gold_logprobs(*mixed_prompts())
    monkeypatch.setattr("tasks.predicting._LOGITS", 1)
    shapes = []
    together.model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(out.shape[1]))
    for a, b in zip(together.gold_logprobs(*mixed_prompts()), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
    assert max(shapes) <= 4 + 7  # tokens of the longest answer, and by how much the prompts of a batch differ


# ---- replies ---------------------------------------------------------------------------------------------------------------


def test_replies_go_on_without_those_that_have_ended(together, alone, monkeypatch):
    expected = replies_to(alone, limit=9)
    ended = [length for _, length in expected]
    assert min(ended) < 5 < max(ended)
    monkeypatch.setattr(replying, "CUTS", (2, 5))
    sizes = []
    greedy = decoding.greedy

    def watched(model, inputs, limit, stop, pad):
        sizes.append((len(inputs["input_ids"]), limit))
        return greedy(model, inputs, limit, stop, pad)

    monkeypatch.setattr(decoding, "greedy", watched)
    assert replies_to(together, limit=9) == expected
    last = sum(count for count, limit in sizes if limit == 4 and count > 1)
    assert 0 < last <= sum(length >= 5 for length in ended) < len(ended)


def test_a_reply_near_a_tie_is_made_again_alone(together, alone):
    replies_to(together)
    together._trials.apart = float("inf")
    assert replies_to(together) == replies_to(alone)
    assert together.how["replies"]["made_again_alone"] == len(mixed_prompts()[0])


def test_the_distance_to_another_reply_is_that_of_the_logits(alone):
    texts, images, _ = mixed_prompts(2)
    made = alone.desk.prompts(texts, lambda n: [images[n]])
    inputs = alone.inputs(made, [1])
    found = decoding.greedy(alone.model, inputs, 5, alone.stop, alone.desk.pad)
    reply = found.tokens[0]
    with torch.inference_mode():
        logits = alone.model(**alone.inputs(made, [1], {1: reply[:-1]})).logits[0, -len(reply) :]
    two = logits.topk(2).values
    assert reply == logits.argmax(-1).tolist()
    np.testing.assert_allclose(found.nearest, (two[:, 0] - two[:, 1]).min(), atol=1e-4)
    np.testing.assert_allclose(found.first, two[0, 0] - two[0, 1], atol=1e-4)


def test_a_reply_that_holds_an_image_token_is_never_read_again(together, alone, monkeypatch):
    """Fed again, the token would ask for another image."""
    expected = replies_to(alone, limit=9)
    monkeypatch.setattr(replying, "CUTS", (1,))
    seen = set()
    greedy = decoding.greedy

    def watched(model, inputs, limit, stop, pad):
        found = greedy(model, inputs, limit, stop, pad)
        seen.update(token for row in found.tokens for token in row)
        return found

    monkeypatch.setattr(decoding, "greedy", watched)
    assert replies_to(together, limit=9) == expected
    assert 4 in seen and together.marks == {4}


# ---- what models share -----------------------------------------------------------------------------------------------------


def test_prompts_are_what_the_processor_makes_of_the_real_images(model):
    texts, images, _ = mixed_prompts(3)
    made = model.desk.prompts(texts, lambda n: [images[n]])
    for n, text in enumerate(texts):
        expected = model.processor(
            text=[model.desk.render(text, 1)], images=[[images[n]]], return_tensors="pt", add_special_tokens=False
        )
        found = model.desk.batch(made, [n])
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_second_model_finds_prompts_and_images_ready(checkpoint, tmp_path, monkeypatch):
    desks = Desks()
    first, second = (CheckpointModel(checkpoint, batch_size=4, desks=desks) for _ in range(2))
    protocol, questions = tasks.protocol("scienceqa@miniature"), toys.questions("scienceqa")
    expected = evaluate("", protocol, questions, model=first, replies_path=tmp_path / "a.jsonl")
    gold = diagnose(first, protocol, questions)
    assert second.desk is first.desk

    def never(*_, **__):
        raise AssertionError("made ready twice")

    monkeypatch.setattr(prepared.Desk, "_process", never)
    monkeypatch.setattr(bridge, "build", never)
    assert evaluate("", protocol, questions, model=second, replies_path=tmp_path / "b.jsonl") == expected
    assert diagnose(second, protocol, questions).rows.equals(gold.rows)


def test_another_preprocessing_is_another_desk(checkpoint):
    desks = Desks()
    first, second = (CheckpointModel(checkpoint, desks=desks) for _ in range(2))
    second.processor.image_processor.image_mean = [0.4] * 3
    assert first.desk is not second.desk


def test_images_that_are_not_kept_any_more_are_made_again(checkpoint):
    model, texts = CheckpointModel(checkpoint, batch_size=4), mixed_prompts()[0]
    expected = replies_to(model)
    model.desk.images = prepared.Kept(limit=2 * 3 * 60 * 60 * 4)  # two images
    assert replies_to(model) == expected
    assert len(model.desk.images._held) == 2 < len(texts)


def test_the_least_recently_used_go_first():
    kept = prepared.Kept(limit=3 * 4 * 10)
    for name in "abc":
        kept.put(name, {"x": torch.zeros(10)})
    kept.get("a")
    kept.put("d", {"x": torch.zeros(10)})
    assert [name for name in "abcd" if kept.get(name) is not None] == ["a", "c", "d"]
    kept.put("a", {"x": torch.zeros(30)})
    assert [name for name in "abcd" if kept.get(name) is not None] == ["a"]


@pytest.mark.parametrize("benchmark", toys.BENCHMARKS)
def test_what_is_asked_is_built_once_and_scores_alike(model, benchmark, tmp_path):
    protocol, questions = tasks.protocol(f"{benchmark}@miniature"), toys.questions(benchmark)
    asked = ask(model, protocol, questions)
    assert asked.prompts == tasks.prompts(protocol, questions)
    rows = evaluate("", protocol, questions, model=model, replies_path=tmp_path / "r.jsonl")
    expected = tasks.score(protocol, rows, gold=questions, partial=True)
    for _ in range(2):  # the task is scored with as often as there are models
        found = tasks.score(protocol, rows, gold=questions, partial=True, asked=asked)
        assert found.rows.equals(expected.rows) and found.value == expected.value
    fewer = tasks.score(protocol, rows[:-1], gold=questions, partial=True, asked=asked)
    assert len(fewer.rows) < len(expected.rows)


def test_a_document_is_the_callers_own():
    questions = toys.questions("textvqa")
    docs = bridge.Docs(questions, pictures=True)
    docs[0]["answers"][0] = "changed"
    docs[0]["image"].putpixel((0, 0), (1, 2, 3))
    assert docs[0]["answers"] == questions.questions[0].doc["answers"]
    assert (np.asarray(docs[0]["image"]) == questions.images[questions.questions[0].image]).all()


# ---- the embedded suite ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "clusters"), [("teacher", 3), pytest.param("base", None, marks=pytest.mark.slow)])
def test_the_embedded_suite_gets_the_same_replies_one_by_one_and_batched(role, clusters, tmp_path):
    single, batched = (CheckpointModel(miniature.FOLDER / role, batch_size=size) for size in (1, 128))
    for protocol in miniature.protocols():
        questions = tasks.load(protocol, limit=clusters)
        expected = evaluate("", protocol, questions, model=single, replies_path=tmp_path / "a.jsonl")
        assert evaluate("", protocol, questions, model=batched, replies_path=tmp_path / "b.jsonl") == expected
