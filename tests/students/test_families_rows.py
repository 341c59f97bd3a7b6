"""Which tokens are replies, under templates of every kind; conversations and templates that cannot be learnt are refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from twin_families import CHATML, LLAVA_TEMPLATE, picture, talk, twin

from harness.base import UserError
from students import models
from students.data.pack import collate, encode
from students.data.samples import Sample
from students.models._base import TAPS
from students.models._image_text import _find
from students.models._template import messages, script
from students.models.llava import LlavaAdapter
from students.shape import LlavaShape
from students.tokens import build_tokenizer

PLAIN = talk(("Why?", "It rains."), ("How many?", "12 dogs."))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    where = tmp_path_factory.mktemp("twins")
    return {name: models.load(twin(name, where / name)) for name in ("llava", "llava_qwen", "llava_onevision", "qwen2_5_vl")}


@pytest.fixture
def templated(adapters):
    """Make an adapter whose processor has another chat template."""

    def made(template, family="llava_qwen"):
        adapter = copy.copy(adapters[family])
        adapter.processor = copy.copy(adapter.processor)
        adapter.processor.chat_template = template
        return adapter

    return made


def replies(adapter, row):
    """The supervised runs of a row as text."""
    places = np.flatnonzero(row.supervised)
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [adapter.processor.tokenizer.decode(row.ids[run]) for run in runs]


# ---- what is learnt --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # the reply follows a line break, and ends with a mark and a line break that nobody has to learn
        (CHATML, ["It rains.<|im_end|>", "12 dogs.<|im_end|>"]),
        # no mark at all: the tokenizer's own takes the place of the space
        (LLAVA_TEMPLATE, ["It rains.<|im_end|>", "12 dogs.<|im_end|>"]),
        # words end a reply, and then the tokenizer's own mark, which generation stops at
        (CHATML.replace("<|im_end|>\n{% endfor %}", "{{ '\n###\n' }}{% endfor %}"),
         ["It rains.\n###<|im_end|>", "12 dogs.\n###<|im_end|>"]),
        # several marks
        (CHATML.replace("<|im_end|>\n{% endfor %}", " <|im_end|><|endoftext|>\n{% endfor %}"),
         ["It rains. <|im_end|><|endoftext|>", "12 dogs. <|im_end|><|endoftext|>"]),
    ],
)  # fmt: skip
def test_replies_and_what_ends_them(templated, template, expected):
    adapter = templated(template)
    row = adapter.row(PLAIN, [])
    found = replies(adapter, row)
    assert [reply.lstrip() for reply in found] == expected
    assert row.supervised[-1]
    assert row.prompt == row.supervised.argmax()


def test_the_prompt_is_what_generation_starts_from(adapters):
    """Tokens before the first reply are those of the text that evaluation renders."""
    for adapter in adapters.values():
        row = adapter.row(PLAIN, [])
        said = messages(PLAIN)[:1]
        text = adapter.processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        bos = adapter.processor.tokenizer.bos_token
        ids = adapter.processor.tokenizer(text, add_special_tokens=bos is None or not text.startswith(bos))["input_ids"]
        assert row.ids[: row.prompt].tolist() == ids


def test_a_row_is_what_packing_makes_of_the_same_question():
    """The two ways to feed a model agree about tokens, labels and a sample's own text."""
    texts = ["What is in the picture?", "a red car", "how many"]
    shape = LlavaShape(hidden=16, layers=1, heads=2, intermediate=32, vision_hidden=16, vision_layers=1, image=12, patch=4)
    adapter = LlavaAdapter.build(shape, build_tokenizer(texts), seed=0)
    shot = picture(12, 12)
    samples = [
        Sample("a", "toy", "k", texts[0], "red car", "red car", noisy=False, blind=False),
        Sample("b", "toy", None, "how many?", "a car", "a car", noisy=False, blind=False),
    ]
    encoded = encode(samples, adapter.processor)
    packed = collate(encoded, [[0], [1]], {"k": adapter.pixels([shot])[0]})
    talks = [(talk(("<image>\n" + texts[0], "red car"), images=1), [shot]), (talk(("how many?", "a car")), [])]
    streamed = adapter.collate([adapter.row(*talked) for talked in talks], (0, 1))
    for name in ("pixel_values", "row", "column", "labels", "clean", "sample", "prompt_row", "prompt_column", "image", "text"):
        assert torch.equal(getattr(streamed, name), getattr(packed, name)), name
    assert streamed.text_tokens == packed.text_tokens
    for number, length in enumerate(streamed.attention_mask.sum(1).tolist()):  # packing leaves out the last token
        assert torch.equal(streamed.input_ids[number, : length - 1], packed.input_ids[number, : length - 1])
    with torch.no_grad():
        hidden, taps = adapter.observe(streamed, TAPS)
        expected, others = adapter.observe(packed, TAPS)
    torch.testing.assert_close(adapter.supervised(hidden, streamed), adapter.supervised(expected, packed), rtol=1e-5, atol=1e-5)
    for name, tap in taps.items():
        torch.testing.assert_close(tap, others[name], rtol=1e-5, atol=1e-5)


def test_marks_inside_replies_do_not_confuse_the_search(adapters):
    """Turns that repeat each other word for word, and images between equal texts."""
    adapter = adapters["qwen2_5_vl"]
    same = ("<image>\nWhy?", "It rains.")
    row = adapter.row(talk(same, same, same, images=3), [picture(32, 32, k) for k in range(3)])
    assert replies(adapter, row) == ["It rains.<|im_end|>"] * 3


def test_pieces_are_found_behind_the_image_they_follow():
    ids = np.array([5, 9, 9, 1, 2, 9, 9, 1, 2, 3])
    assert _find(ids, np.array([1, 2]), 2, 9) == 3
    assert _find(ids, np.array([2, 9]), 2, 9) == 4
    assert _find(ids, np.array([1, 2, 3]), 2, 9) == -1  # no image follows, so it is the last piece and not one between
    assert _find(ids, np.array([7]), 2, 9) == -1
    assert _find(ids, np.array([], np.int64), 4, 9) == 4


def test_white_space_round_turns_and_marks_is_the_templates_own(adapters):
    said = messages(talk(("\n<image>\n\nWhy, \n<image> here?\n", "  It rains.\n"), images=2))
    assert said == [
        {"role": "user", "content": [
            {"type": "image"}, {"type": "text", "text": "Why, "}, {"type": "image"}, {"type": "text", "text": " here?"},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "It rains."}]},
    ]  # fmt: skip
    for adapter in adapters.values():
        tidy = adapter.row(talk(("Why?", "yes")), [])
        assert adapter.row(talk((" \nWhy?\n", "\n yes ")), []).ids.tolist() == tidy.ids.tolist()
    assert messages(talk(("", "yes")))[0]["content"] == [{"type": "text", "text": ""}]


# ---- what is refused -------------------------------------------------------------------------------------------------------

# drops replies but the last, as templates that hide earlier thoughts do
FORGETS = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['role'] }}:"
    "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
GROWS = "{% for m in messages %}{{ m['role'] }}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (FORGETS, r"chat template of this llava rewrites what was said before turn 2 \(row 'row'\)"),
        ("{{ messages | length }}" + GROWS, r"of this llava starts the reply of turn 1 \(row 'row'\) in another way"),
        (GROWS + "{% if add_generation_prompt %}think:{% endif %}", r"starts the reply of turn 1"),
        ("{% for m in messages %}{% for p in m['content'] %}{{ p['text'] | upper }}{% endfor %}<|im_end|>{% endfor %}",
         r"changes the reply of turn 1 \(row 'row'\) from 'It rains.' to 'IT RAINS."),
        ("{% for m in messages %}{{ m['content'] + 'x' }}{% endfor %}", r"this llava cannot render turn 1 \(TypeError"),
        ("{{ raise_exception('only one turn') }}", r"cannot render turn 1 \(TemplateError: only one turn"),
    ],
)  # fmt: skip
def test_templates_that_hide_which_tokens_are_replies_are_refused(templated, template, message):
    with pytest.raises(UserError, match=message):
        templated(template).row(PLAIN, [])


def test_a_template_and_a_tokenizer_that_never_end_a_reply_are_refused(templated):
    adapter = templated(LLAVA_TEMPLATE)
    tokenizer = copy.copy(adapter.processor.tokenizer)
    adapter.processor.tokenizer = tokenizer
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither chat template nor tokenizer of this llava ends a reply"):
        script(adapter.processor, PLAIN, adapter.family)


def test_marks_and_pictures_must_fit(adapters):
    shot = picture(32, 32)
    for adapter in adapters.values():
        for conversation, pictures, message in (
            (talk(("Why?", "yes"), images=1), [shot], r"has 1 image\(s\) and 0 mark\(s\) <image>"),
            (talk(("<image> <image>", "yes"), images=1), [shot], r"has 1 image\(s\) and 2 mark\(s\)"),
            (talk(("<image>", "yes"), images=1), [], r"names 1 image\(s\) and comes with 0"),
            (talk(("Why?", " \n"), images=0), [], "row 'row' has an empty reply in turn 1"),
            (talk(("Why?", f"see {adapter.processor.image_token}")), [], r"renders to 1 image token\(s\) for 0 image"),
        ):
            with pytest.raises(UserError, match=message):
                adapter.row(conversation, pictures)


def test_a_picture_that_the_processor_refuses_is_named(adapters):
    with pytest.raises(UserError, match=r"processor of this qwen2_5_vl refuses the image\(s\) of row 'row' \(900x2"):
        adapters["qwen2_5_vl"].row(talk(("<image>", "yes"), images=1), [picture(2, 900)])


def test_a_processor_that_does_not_fit_its_model_is_refused(adapters):
    adapter = copy.copy(adapters["llava"])
    adapter.processor = copy.copy(adapter.processor)
    adapter.processor.num_additional_image_tokens = 0
    with pytest.raises(UserError, match=r"this llava makes 15 tokens of 1 image\(s\), and the model 16 of each; patch_size"):
        adapter.row(talk(("<image>", "yes"), images=1), [picture(32, 32)])


def test_a_cut_that_would_change_what_an_image_becomes_is_refused(adapters):
    """LLaVA-OneVision makes more tokens of an image that is alone than of one among others."""
    adapter = adapters["llava_onevision"]
    conversation = talk(("<image> Why?", "It rains."), ("<image> How many?", "12 dogs."), images=2)
    shots = [picture(40, 60), picture(60, 40)]
    whole = adapter.row(conversation, shots)
    with pytest.raises(
        UserError, match=r"row 'row' is cut to 1 image\(s\), of which this llava_onevision makes another number"
    ):
        adapter.row(conversation, shots, whole.prompt + 3)


def test_text_round_an_image_that_the_processor_changes_is_refused(adapters):
    adapter = adapters["qwen2_5_vl"]
    raw, ids = np.array([1, adapter.image_token, 2]), np.array([1, adapter.image_token, 3, 2])
    assert adapter._places(raw, ids).tolist() == [0, 1, 3]  # what follows an image is part of what it becomes
    for wrong in ([1, adapter.image_token, 3], [4, adapter.image_token, 2], [1, 2], [1, 3, adapter.image_token, 5]):
        with pytest.raises(UserError, match="qwen2_5_vl changes the text round an image"):
            adapter._places(raw, np.array(wrong))


def test_rows_without_anything_to_learn_make_no_batch(adapters):
    adapter = adapters["llava"]
    row = adapter.row(PLAIN, [])
    nothing = replace(row, supervised=np.zeros_like(row.supervised))
    with pytest.raises(UserError, match="row 7 has no supervised token"):
        adapter.collate([row, nothing], (3, 7))
    with pytest.raises(UserError, match="a batch of 0 rows with 0 numbers"):
        adapter.collate([], ())


def test_packed_rows_are_for_fixed_numbers_of_tokens(adapters):
    with pytest.raises(UserError, match="cannot share a row for this qwen2_5_vl"):
        adapters["qwen2_5_vl"].pixels([picture(32, 32)])


def test_families_with_one_tokenizer_learn_the_same_tokens(adapters):
    """However each writes the question, so that a teacher and a student of two families can be compared."""
    conversation = talk(("<image>\nWhat is in the picture?", "A red car."), ("Why?", "It rains."), images=1)
    rows = {
        name: adapters[name].row(conversation, [picture(40, 60)]) for name in ("llava_qwen", "llava_onevision", "qwen2_5_vl")
    }
    assert len({len(row.ids) for row in rows.values()}) == 3
    assert len({tuple(row.ids[row.supervised].tolist()) for row in rows.values()}) == 1
