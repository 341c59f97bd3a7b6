"""Features of streamed rows: vision tokens of every image, attention of the first layer as an eager model makes it."""

import pytest
import torch
import transformers
from twin_families import picture, talk, twin

from harness.base import UserError
from students import models
from students.models._attention import first_attention
from students.models._base import TAPS, common_vision_tokens

N_V = 16
TALKS = [
    (talk(("<image>\nWhat is in the picture?", "A red car."), images=1), [picture(40, 60)]),
    (talk(("How many dogs?", "12 dogs."), ("Why?", "It rains.")), []),
    (talk(("<image>\n<image>\nWhich?", "One."), ("And <image> now?", "yes"), images=3), [picture(32, 32, k) for k in range(3)]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("twins")
    made = {name: twin(name, where / name) for name in ("llava", "llava_qwen", "qwen2_5_vl", "smolvlm")}
    return {**made, "teacher": twin("llava", where / "teacher", "teacher", 1)}


@pytest.fixture(scope="module", params=["llava", "llava_qwen"])
def adapter(request, folders):
    return models.load(folders[request.param])


@pytest.fixture(scope="module")
def rows(adapter):
    return [adapter.row(*talked) for talked in TALKS]


@pytest.mark.parametrize("side", ["right", "left"])
def test_taps_of_a_batch_are_those_of_its_rows(adapter, rows, side):
    batch = adapter.collate(rows, (0, 1, 2), side)
    with torch.no_grad():
        hidden, together = adapter.observe(batch, TAPS)
        assert torch.equal(hidden, adapter.hidden(batch))
        alone = [adapter.observe(adapter.collate([row], (0,)), TAPS)[1] for row in rows]
    assert together["vision"].shape == (4, N_V, 16)
    for name in ("vision", "vision_logits"):
        expected = torch.cat([taps[name] for taps in alone])
        torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-5)
    for number, taps in enumerate(alone):
        n, keys = int(taps["attention_mask"].sum()), taps["attention"].shape[2]
        assert keys == N_V * max(1, rows[number].pictures)
        assert together["attention_mask"][number].sum() == n
        torch.testing.assert_close(together["attention"][number, :n, :keys], taps["attention"][0, :n], rtol=1e-5, atol=1e-5)
        assert not together["attention"][number, n:].any() and not together["attention"][number, :, keys:].any()


def test_vision_taps_are_what_the_model_scatters(adapter, rows):
    """The projector's output and the head at each image's own tokens, images in row order."""
    batch = adapter.collate(rows, (0, 1, 2))
    with torch.no_grad():
        hidden, taps = adapter.observe(batch, TAPS)
        logits = adapter.head(hidden)
        torch.testing.assert_close(taps["vision"], adapter.vision(batch.pixel_values), rtol=1e-5, atol=1e-5)
    places = (batch.input_ids == adapter.image_token).nonzero()
    expected = logits[places[:, 0], places[:, 1]].reshape(4, N_V, -1)
    torch.testing.assert_close(taps["vision_logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_first_map_is_an_eager_models(folders, adapter, rows, side):
    """Biases, grouped heads, rotary positions and padding included."""
    batch = adapter.collate(rows, (0, 1, 2), side)
    folder = folders["llava_qwen" if adapter.text_config.model_type == "qwen2" else "llava"]
    eager = transformers.AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    assert (adapter.language.layers[0].self_attn.q_proj.bias is None) == (adapter.text_config.model_type == "llama")
    with torch.no_grad():
        whole = eager(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), pixel_values=batch.pixel_values,
            output_attentions=True,
        ).attentions[0]  # fmt: skip
        found, there = adapter.attention(batch, adapter.vision(batch.pixel_values))
    for number in (0, 2):
        keys = (batch.input_ids[number] == adapter.image_token).nonzero()[:, 0]
        assert len(keys) == N_V * rows[number].pictures, "of every image"
        asked = batch.text[number][there[number]]
        expected = whole[number][:, asked][:, :, keys].permute(1, 2, 0)
        torch.testing.assert_close(found[number, : len(asked), : len(keys)], expected, rtol=1e-5, atol=1e-6)
    assert not found[1].any()
    assert adapter.model.config.text_config._attn_implementation == "sdpa"


def test_an_attention_that_looks_back_only_some_tokens_is_refused(folders, rows, adapter):
    qwen = models.load(folders["llava_qwen"])
    qwen.language.layers[0].self_attn.sliding_window = 8
    batch = qwen.collate([qwen.row(*TALKS[0])], (0,))
    with pytest.raises(UserError, match="'attention' knows full attention, and this language model's first layer looks back 8"):
        first_attention(qwen.language, torch.zeros(*batch.input_ids.shape, 16), batch, torch.zeros(1, N_V, dtype=torch.int64))


def test_images_of_variable_length_have_no_taps(folders):
    for name in ("qwen2_5_vl", "smolvlm"):
        adapter = models.load(folders[name])
        batch = adapter.collate([adapter.row(*TALKS[0])], (0,))
        adapter.observe(batch, ())
        for call in (lambda a=adapter, b=batch: a.observe(b, {"vision"}), lambda a=adapter, b=batch: a.vision(b.pixel_values)):
            with pytest.raises(UserError, match=f"a variable number of tokens for this {name}, so it has no taps"):
                call()


def test_two_families_that_cannot_be_compared_are_both_named(folders):
    llava, qwen, smol = (models.load(folders[name]) for name in ("llava", "qwen2_5_vl", "smolvlm"))
    some = "a variable number of"
    with pytest.raises(
        UserError, match=rf"takes 16 tokens for the student \(llava\) and {some} tokens for the teacher \(qwen2_5_vl\)"
    ):
        common_vision_tokens(llava, qwen)
    with pytest.raises(
        UserError, match=rf"{some} tokens for the student \(smolvlm\) and {some} tokens for the teacher \(qwen2_5_vl\)"
    ):
        common_vision_tokens(smol, qwen)
    assert common_vision_tokens(llava, models.load(folders["teacher"])) == N_V
