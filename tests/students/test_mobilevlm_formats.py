"""Formats plain and v1: tokens, and which of them are learnt, as published, with a small sentencepiece vocabulary."""

import json

import mobilevlm_reference as published
import numpy as np
import pytest
import twins

from harness.base import UserError
from students.data.conversations import IMAGE, Conversation, NothingToLearn, Turn
from students.models._mobilevlm_config import MobileVlmConfig
from students.models._mobilevlm_processor import MobileVlmProcessor
from students.models.mobilevlm import MobileVlmAdapter

SHAPE = (24, 24, 3)
REPLIES = (
    "There is a red circle.",
    "B",
    "12 of them",
    "  two spaces",
    "line\nbreak",
    "trailing ",
    "naïve 你好 \t",
    "ASSISTANT",
    "USER: x",
)


class Bare(MobileVlmAdapter):
    """The adapter with a processor and no model: text needs none."""

    def __init__(self, processor):
        self.processor, self._template = processor, "v1"

    image_token = 384


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return twins.mobilevlm_twin(tmp_path_factory.mktemp("formats") / "student")


@pytest.fixture(scope="module")
def adapter(folder):
    return Bare(MobileVlmProcessor.from_pretrained(folder))


@pytest.fixture(scope="module")
def words():
    return published.Words(twins.sentencepiece_model())


def row(adapter, *turns, template="v1", limit=None):
    adapter.template = template
    marks = sum(question.count(IMAGE) for question, _ in turns)
    images = tuple(map(str, range(marks)))
    made = adapter.row(
        Conversation("r", "t", images, tuple(Turn(*t) for t in turns)), [np.zeros(SHAPE, np.uint8)] * marks, limit
    )
    adapter.template = "v1"
    return made


def contracted(made):
    """Ids with -200 for an image, and the mask, as before the published code expands them."""
    ids, learnt, place = [], [], 0
    while place < len(made.ids):
        image = made.ids[place] == 384
        ids.append(published.IMAGE_ID if image else int(made.ids[place]))
        learnt.append(bool(made.supervised[place]))
        if image:
            assert (made.ids[place : place + 144] == 384).all() and not made.supervised[place : place + 144].any()
        place += 144 if image else 1
    return ids, learnt


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize(
    "question",
    [f"{IMAGE}\nWhat is it?", f"What is {IMAGE} it?", f"{IMAGE}", f"  What is it?\n{IMAGE} ", "What is it?", " text alone\n"],
)
def test_v1_is_tokenised_and_supervised_as_published(adapter, words, question, reply):
    turns = [(question, reply), ("And then?", "yes"), ("  ", reply)]
    assert contracted(row(adapter, *turns)) == published.published_v1(words, turns, IMAGE in question)


@pytest.mark.parametrize("reply", REPLIES)
def test_plain_is_the_image_the_caption_and_a_line_break(adapter, words, reply):
    made = row(adapter, (f"Describe {IMAGE} at length.", reply), template="plain")
    assert contracted(made) == published.published_plain(words, reply)


def pieces(adapter, made):
    return "".join(adapter.processor.tokenizer.convert_ids_to_tokens(made.ids[made.supervised].tolist()))


def test_what_is_learnt_reads_as_the_replies_and_their_ends(adapter):
    made = row(adapter, (f"{IMAGE}\nWhat is it?", "a red circle"), ("Sure?", "yes"))
    assert pieces(adapter, made) == "▁a▁red▁circle</s>▁yes</s>"
    assert made.ids[0] == 1 and not made.supervised[0]
    assert made.prompt == np.flatnonzero(made.supervised)[0]
    assert made.ids[made.prompt - 1] == adapter.processor.tokenizer.convert_tokens_to_ids(":")
    made = row(adapter, (f"{IMAGE}\nWhat is it?", "a red circle"), template="plain")
    assert pieces(adapter, made) == "▁a▁red▁circle<0x0A>"
    assert list(made.ids[:145]) == [1] + [384] * 144


def test_text_that_spells_a_special_token_stays_text(adapter):
    made = row(adapter, ("What does <s> mean?", "</s> ends it"))
    assert (made.ids == 1).sum() == 1 and (made.ids == 2).sum() == 1
    assert pieces(adapter, made).endswith("▁ends▁it</s>")


def test_text_after_an_end_starts_anew_unless_the_tokenizer_says_otherwise(folder, adapter, tmp_path):
    turns = (("Hi", "yes"), ("Sure?", "no"))
    legacy = row(adapter, *turns)
    after = int(np.flatnonzero(legacy.ids == 2)[0]) + 1
    tokens = adapter.processor.tokenizer
    assert tokens.convert_ids_to_tokens(int(legacy.ids[after])).startswith("▁US")
    other = twins.mobilevlm_twin(tmp_path / "other")
    facts = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**facts, "legacy": False}))
    modern = row(Bare(MobileVlmProcessor.from_pretrained(other)), *turns)
    assert not tokens.convert_ids_to_tokens(int(modern.ids[after])).startswith("▁")
    assert pieces(adapter, modern) == pieces(adapter, legacy)


def test_prompts_are_what_training_rows_start_with(adapter):
    made = row(adapter, (f"{IMAGE}\nWhat is it?", "a red circle"))
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = adapter.processor.apply_chat_template([{"role": "user", "content": content}])
    assert text == f"<s>{published.SYSTEM} USER: {IMAGE}\nWhat is it? ASSISTANT:"
    asked = adapter.processor(text=[text], images=[np.zeros(SHAPE, np.uint8)], add_special_tokens=False)
    assert asked["input_ids"][0].tolist() == made.ids[: made.prompt].tolist()
    later = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    text = adapter.processor.apply_chat_template(later)
    made = row(adapter, ("Hi", "yes"), ("Sure?", "no"))
    ids = adapter.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == made.ids[: len(ids)].tolist()
    assert adapter.processor.tokenizer(text.removeprefix("<s>"))["input_ids"] == ids, "the tokenizer puts the same token first"


def test_replies_are_decoded_as_they_were_said(adapter, words):
    for reply in ("a red circle", "12", "naïve 你好", "line\nbreak"):
        ids = words(reply)[1:]
        assert adapter.processor.tokenizer.decode([*ids, 2], skip_special_tokens=True) == reply


def test_a_limit_cuts_replies_never_images_and_counts_what_is_lost(adapter):
    turns = ((f"{IMAGE}\nWhat is it?", "a red circle"), (f"And {IMAGE}?", "a blue square"))
    whole = row(adapter, *turns)
    ends = np.flatnonzero(whole.ids == 2)
    learnt = int(whole.supervised.sum())
    for limit in (len(whole.ids), len(whole.ids) + 5):
        made = row(adapter, *turns, limit=limit)
        assert (len(made.ids), made.cut, made.pictures) == (len(whole.ids), 0, 2)
    for limit in (int(ends[0]) + 1, int(ends[0]) + 60, int(np.flatnonzero(whole.ids == 384)[-1]) + 2):
        made = row(adapter, *turns, limit=limit)
        assert (len(made.ids), made.pictures) == (ends[0] + 1, 1), "the second image left with the reply about it"
        assert made.cut + int(made.supervised.sum()) == learnt
        assert len(made.pixels["pixel_values"]) == 1
    made = row(adapter, *turns, limit=whole.prompt + 1)
    assert (int(made.supervised.sum()), made.cut) == (1, learnt - 1)
    with pytest.raises(NothingToLearn, match=f"has {whole.prompt} tokens before its first reply"):
        row(adapter, *turns, limit=whole.prompt)


@pytest.mark.parametrize(
    ("turns", "template", "message"),
    [
        ((("Hi", ""),), "v1", "empty reply in turn 1"),
        ((("Hi", f"see {IMAGE}"),), "v1", "needed: one each"),
        ((("Hi", "yes"),), "plain", "one turn about an image"),
        (((f"{IMAGE}", "yes"), ("Sure?", "no")), "plain", r"2 turn\(s\)"),
    ],
)
def test_rows_that_a_format_cannot_say(adapter, turns, template, message):
    with pytest.raises(UserError, match=message):
        row(adapter, *turns, template=template)


def test_marks_images_and_pictures_must_agree(adapter):
    with pytest.raises(UserError, match=r"'r' has 1 image\(s\) and 0 mark"):
        adapter.row(Conversation("r", "t", ("i",), (Turn("Hi", "yes"),)), [np.zeros(SHAPE, np.uint8)])
    with pytest.raises(UserError, match=r"names 1 image\(s\) and comes with 0"):
        adapter.row(Conversation("r", "t", ("i",), (Turn(IMAGE, "yes"),)), [])
    with pytest.raises(UserError, match="2 mark"):
        adapter.processor(text=[IMAGE * 2], images=[np.zeros(SHAPE, np.uint8)])
    with pytest.raises(UserError, match=r"unknown template 'vicuna'.* Known: plain, v1"):
        adapter.template = "vicuna"


def test_a_tokenizer_that_does_not_fit_is_named(folder):
    config = MobileVlmConfig.from_pretrained(folder)
    config.vocab_size = 300
    with pytest.raises(UserError, match=r"tokenizer\.model has 384 tokens, and config\.json says 300"):
        MobileVlmProcessor.from_pretrained(folder, config)
    config = MobileVlmConfig.from_pretrained(folder)
    config.eos_token_id = 7
    with pytest.raises(UserError, match=r"has the eos token 2, and .* says 7"):
        MobileVlmProcessor.from_pretrained(folder, config)


def test_images_have_an_id_beyond_a_padded_vocabulary(folder):
    config = MobileVlmConfig.from_pretrained(folder)
    config.vocab_size = 400
    processor = MobileVlmProcessor.from_pretrained(folder, config)
    ids = processor.tokenizer(f"x {IMAGE} y", add_special_tokens=False)["input_ids"]
    assert ids.count(400) == 1 and processor.coding.image == 400
