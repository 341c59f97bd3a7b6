"""MobileVLM V2: the same numbers as a model written out in plain torch, from every published layout, in every batch."""

import json

import mobilevlm_reference as plain
import numpy as np
import pytest
import torch
import twins
from safetensors.torch import load_file

from students import models
from students.data.conversations import IMAGE, Conversation, Turn
from students.data.pack import collate, encode
from students.data.samples import Sample
from students.models.mobilevlm import MobileVlmAdapter

SIZES = ((20, 50), (50, 20), (33, 33), (48, 48), (7, 91))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("mobilevlm")
    for size, layout in (("student", "bin"), ("teacher", "sharded")):
        twins.mobilevlm_twin(where / size, size, layout)
    return where


@pytest.fixture(scope="module")
def reference(folders):
    return plain.Reference(folders / "student")


@pytest.fixture(scope="module")
def adapter(folders):
    return models.load(folders / "student")


def picture(number):
    height, width = SIZES[number % len(SIZES)]
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def talk(name, *turns):
    """A conversation and its pictures; every mark shows another one."""
    marks = sum(question.count(IMAGE) for question, _ in turns)
    images = tuple(f"{name}-{k}" for k in range(marks))
    conversation = Conversation(name, "test", images, tuple(Turn(*turn) for turn in turns))
    return conversation, [picture(k + len(name)) for k in range(marks)]


TALKS = [
    talk("a", (f"{IMAGE}\nWhat is in the picture?", "There is a red circle."), ("How many dogs?", "12")),
    talk("text", ("Which one is larger?", "the small dog")),
    talk("two", (f"Compare {IMAGE} and {IMAGE}.", "no"), ("Why?", "It is a quiet painting, in style.")),
    talk("later", ("Hello", "yes"), (f"And here? {IMAGE}", "a blue square")),
]


@pytest.fixture(scope="module")
def rows(adapter):
    return [adapter.row(*each) for each in TALKS]


def alone(reference, row, shown, folders):
    """The reference's logits of one row, and its ids with -200."""
    side, mean, std = plain.read_tower(folders / "student" / twins.TOWER_FOLDER)
    vocabulary = reference.config["vocab_size"]
    ids, place = [], 0
    while place < len(row.ids):
        image = row.ids[place] == vocabulary
        ids.append(plain.IMAGE_ID if image else int(row.ids[place]))
        place += 144 if image else 1
    return reference.logits(ids, [plain.pixels(p, side, mean, std) for p in shown]), ids


# ---- logits ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_of_a_padded_batch_are_those_of_each_row_alone(adapter, reference, rows, folders, side):
    """Images first, later, several or none: no neighbour, padding or order changes a number."""
    batch = adapter.collate(rows, range(len(rows)), side=side)
    with torch.no_grad():
        logits = adapter.head(adapter.hidden(batch))
    for number, (row, (_, shown)) in enumerate(zip(rows, TALKS, strict=True)):
        expected, _ = alone(reference, row, shown, folders)
        found = logits[number][batch.attention_mask[number]]
        assert expected.std() > 0.5, "flat logits cannot show a difference"
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_images_stand_where_the_questions_show_them(rows, reference, folders):
    for row, (conversation, shown) in zip(rows, TALKS, strict=True):
        _, ids = alone(reference, row, shown, folders)
        assert ids.count(plain.IMAGE_ID) == row.pictures == len(conversation.images)
    order = [(row.ids == 384).argmax() for row in (rows[0], rows[3])]
    assert order[0] < order[1], "an image of the second question comes after the first reply"


def test_pictures_are_squared_with_the_mean_colour_and_never_cropped(adapter, folders):
    side, mean, std = plain.read_tower(folders / "student" / twins.TOWER_FOLDER)
    shown = [picture(k) for k in range(5)]
    found = adapter.pixels(shown)
    expected = torch.stack([plain.pixels(p, side, mean, std) for p in shown])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    corner = found[0][:, 0, 0] * torch.tensor(std) + torch.tensor(mean)  # a wide picture's corner is padding
    torch.testing.assert_close(corner.float(), torch.tensor([122, 116, 104]) / 255, atol=1e-6, rtol=0)


def test_layouts_are_read_alike(tmp_path, adapter, rows):
    batch = adapter.collate(rows[:1], [0])
    with torch.no_grad():
        expected = adapter.hidden(batch)
        for layout in ("safetensors", "sharded"):
            other = models.load(twins.mobilevlm_twin(tmp_path / layout, "student", layout))
            assert torch.equal(other.hidden(batch), expected), layout
        adapter.save(tmp_path / "parts")
        (tmp_path / "parts" / "model.safetensors").unlink()
        adapter.model.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
        assert len(list((tmp_path / "parts").glob("model-*-of-*.safetensors"))) > 1
        assert torch.equal(models.load(tmp_path / "parts").hidden(batch), expected)


def test_half_precision_is_asked_for_and_got(folders, rows, adapter):
    half = models.load(folders / "student", dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    batch = half.collate(rows, range(4))
    with torch.no_grad():
        near = half.supervised(half.hidden(batch), batch).float()
        exact = adapter.supervised(adapter.hidden(batch), batch)
    assert torch.nn.functional.cosine_similarity(near, exact, dim=-1).min() > 0.99


def test_a_grid_that_12_does_not_divide_is_pooled_as_published():
    from students.models._mobilevlm_model import LdpV2

    torch.manual_seed(0)
    projector, features = LdpV2(4, 6), torch.randn(2, 256, 4)  # 16 x 16, as CLIP-L/14 at 224 pixels has
    written = plain.Reference.__new__(plain.Reference)
    written.weights = {f"model.mm_projector.{n}": v for n, v in projector.state_dict().items()}
    with torch.no_grad():
        expected = torch.stack([written.project(each) for each in features])
        torch.testing.assert_close(projector(features), expected, atol=1e-6, rtol=1e-5)


# ---- packed rows and taps --------------------------------------------------------------------------------------------------


def test_packed_questions_about_one_image_get_what_each_gets_alone(adapter):
    samples = [Sample(f"q{k}", "gqa", "i", f"How many dogs {k}?", "three", "three", False, False) for k in range(3)]
    encoded = encode(samples, adapter.processor)
    pixels = {"i": adapter.pixels([picture(0)])[0]}
    packed = collate(encoded, [[0, 1, 2]], pixels)
    with torch.no_grad():
        together = adapter.supervised(adapter.hidden(packed), packed)
        single = []
        for k in range(3):
            one = collate(encoded, [[k]], pixels)
            single.append(adapter.supervised(adapter.hidden(one), one))
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-5)
    row = adapter.row(*talk("q", (f"{IMAGE}\nHow many dogs 0?", "three")))
    assert np.array_equal(np.concatenate([encoded.prompts[0], encoded.answers[0]]), row.ids), "both ways make the same tokens"


def test_taps_are_the_models_own_features(adapter, reference, rows, folders):
    batch = adapter.collate(rows, range(4), side="left")
    with torch.no_grad():
        hidden, taps = adapter.observe(batch, {"vision", "vision_logits", "attention"})
        assert torch.equal(hidden, adapter.hidden(batch))
    shown = [p for _, pictures in TALKS for p in pictures]
    side, mean, std = plain.read_tower(folders / "student" / twins.TOWER_FOLDER)
    expected = torch.stack([reference.project(reference.clip(plain.pixels(p, side, mean, std))) for p in shown])
    torch.testing.assert_close(taps["vision"], expected, atol=1e-5, rtol=1e-5)
    logits, ids = alone(reference, rows[0], TALKS[0][1], folders)
    start = ids.index(plain.IMAGE_ID)
    torch.testing.assert_close(taps["vision_logits"][0], logits[start : start + 144], atol=1e-5, rtol=1e-5)
    side, mean, std = plain.read_tower(folders / "student" / twins.TOWER_FOLDER)
    whole = reference.llama(reference.embeds(ids, [plain.pixels(TALKS[0][1][0], side, mean, std)]))[1]
    own = np.arange(start + 144, len(rows[0].ids) - 1)  # the text after the image, without the last token
    expected = whole[:, own][:, :, start : start + 144].permute(1, 2, 0)
    found = taps["attention"][0][taps["attention_mask"][0]]
    torch.testing.assert_close(found[:, :144], expected, atol=1e-6, rtol=1e-4)
    assert not found[:, 144:].any()  # another row of the batch shows two images


def test_attention_is_made_for_one_layer_while_the_model_keeps_its_kernel(adapter):
    assert adapter.model.config._attn_implementation == "sdpa"
    assert adapter.tower.vision_tower.vision_model.config._attn_implementation == "sdpa"


def test_teacher_and_student_differ_in_width_and_heads(folders, adapter):
    teacher = models.load(folders / "teacher")
    pair = [(a.hidden_size, a.tap_width("vision"), a.tap_width("attention"), a.vision_tokens) for a in (adapter, teacher)]
    assert pair == [(32, 32, 4, 144), (48, 48, 6, 144)]
    assert adapter.tokens() == teacher.tokens()
    assert (len(adapter.tokens()), adapter.vocabulary_size) == (384, 384)


# ---- parts -----------------------------------------------------------------------------------------------------------------


def test_parts_are_the_published_ones(adapter):
    named = dict(adapter.model.named_parameters())
    try:
        for parts, prefixes in (
            (("tower",), ("model.vision_tower.",)),
            (("projector",), ("model.mm_projector.",)),
            (("language",), ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")),
        ):
            adapter.learn(parts)
            assert {n for n, _ in adapter.trainable()} == {n for n in named if n.startswith(prefixes)}
    finally:
        adapter.learn(("language", "projector"))
    assert all(name.startswith("model.layers.") for name in adapter.lora_targets)
    assert len(adapter.lora_targets) == 2 * 7


def test_every_part_that_learns_gets_a_gradient(folders, rows):
    adapter = models.load(folders / "student")
    batch = adapter.collate(rows, range(4))
    adapter.head(adapter.supervised(adapter.hidden(batch), batch)).float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in adapter.trainable())
    assert all(p.grad is None for _, p in adapter.frozen())


# ---- saved -----------------------------------------------------------------------------------------------------------------


def test_a_saved_student_loads_back_in_the_published_layout(folders, adapter, rows, tmp_path):
    adapter.save(tmp_path / "saved")
    batch = adapter.collate(rows, range(4))
    again = models.load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.hidden(batch), adapter.hidden(batch))
    for row, (conversation, shown) in zip(rows, TALKS, strict=True):
        other = again.row(conversation, shown)
        assert np.array_equal(other.ids, row.ids)
        assert not shown or torch.equal(other.pixels["pixel_values"], row.pixels["pixel_values"])
    published = torch.load(folders / "student" / "pytorch_model.bin", weights_only=True)
    computed = {name for name in published if name.endswith(("inv_freq", "position_ids"))}
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == published.keys() - computed
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (folders / "student" / name).read_bytes()


def test_the_configuration_keeps_its_published_names_and_values(tmp_path):
    from students.models._mobilevlm_config import CLIP_L, MobileVlmConfig

    published = twins.published_config("student", CLIP_L, 32000) | {"mm_hidden_size": 1024, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = MobileVlmConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    changed = {key for key in published.keys() | saved.keys() if published.get(key, "absent") != saved.get(key, "absent")}
    assert changed == {"_name_or_path", "transformers_version"}


def test_the_published_tower_needs_no_file():
    from pathlib import Path

    from students.models._mobilevlm_config import CLIP_L, MobileVlmConfig, complete, pixel_settings

    given = twins.published_config("student", CLIP_L, 32000) | {"mm_hidden_size": 1024}
    config = complete(MobileVlmConfig.from_dict(given), Path("/nowhere"))
    sizes = config.mm_vision_config
    assert (sizes["hidden_size"], sizes["num_hidden_layers"], sizes["image_size"] // sizes["patch_size"]) == (1024, 24, 24)
    assert pixel_settings(CLIP_L, Path("/nowhere"))["image_mean"] == twins.MEAN


def test_weights_of_a_tower_that_the_checkpoint_has_not_come_from_its_folder(folders, adapter, rows, tmp_path):
    folder = twins.mobilevlm_twin(tmp_path / "bare", "student", "bin")
    file = folder / "pytorch_model.bin"
    kept = {name: v for name, v in torch.load(file, weights_only=True).items() if "vision_tower" not in name}
    torch.save(kept, file)
    twins.clip_tower(folder / twins.TOWER_FOLDER, weights=True)
    batch = adapter.collate(rows, range(4))
    with torch.no_grad():
        assert torch.equal(models.load(folder).hidden(batch), adapter.hidden(batch))


def test_a_start_is_assembled_of_a_language_model_and_a_tower(tmp_path, rows):
    from students.models.mobilevlm import assemble

    language = twins.mobilellama_twin(tmp_path / "language", seed=3)
    tower = twins.clip_tower(tmp_path / "tower")
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assemble(language, tower, tmp_path / out, seed)
    made = {name: load_file(tmp_path / name / "model.safetensors") for name in "abc"}
    assert all(torch.equal(made["a"][name], made["b"][name]) for name in made["a"])
    differing = {name for name in made["a"] if not torch.equal(made["a"][name], made["c"][name])}
    assert {name.rsplit(".", 1)[0] for name in differing} == {
        f"model.mm_projector.{p}" for p in ("mlp.mlp.0", "mlp.mlp.2", "peg.peg.0")
    }
    given = torch.load(language / "pytorch_model.bin", weights_only=True)
    assert torch.equal(made["a"]["model.layers.1.mlp.up_proj.weight"], given["model.layers.1.mlp.up_proj.weight"])
    adapter = MobileVlmAdapter.load(tmp_path / "a")
    with torch.no_grad():
        assert adapter.hidden(adapter.collate(rows[:1], [0])).isfinite().all()
    projector = {f"model.mm_projector.{n}": v for n, v in adapter.projector.state_dict().items()}
    torch.save(projector, tmp_path / "mm_projector.bin")
    assemble(language, tower, tmp_path / "d", 9, projector=tmp_path / "mm_projector.bin")
    again = load_file(tmp_path / "d" / "model.safetensors")
    assert all(torch.equal(again[name], made["a"][name]) for name in made["a"])


def test_without_padding_pictures_are_cropped_as_clips(folders, tmp_path):
    folder = twins.mobilevlm_twin(tmp_path / "square")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "image_aspect_ratio": "square"}))
    side, mean, std = plain.read_tower(folder / twins.TOWER_FOLDER)
    wide = np.zeros((48, 96, 3), np.uint8)
    wide[:, 24:72] = picture(3)
    expected = plain.pixels(np.ascontiguousarray(wide[:, 24:72]), side, mean, std)
    torch.testing.assert_close(models.load(folder).pixels([wide])[0], expected, atol=1e-5, rtol=1e-5)


def test_keys_of_a_configuration_that_nobody_reads_do_no_harm(adapter, rows, tmp_path):
    """The published 3B configuration still has those of the library that its language model was trained with."""
    folder = twins.mobilevlm_twin(tmp_path / "more")
    facts = json.loads((folder / "config.json").read_text())
    more = {"_mlp_class": "LLaMAMLP", "_norm_class": "RMSNorm", "bias": False, "block_size": 2048, "lm_head_bias": False,
            "gelu_approximate": "none", "n_embd": 9, "n_head": 3, "rotary_percentage": 1.0, "name": "x"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**facts, **more}))
    other = models.load(folder)
    batch = adapter.collate(rows, range(4))
    with torch.no_grad():
        assert torch.equal(other.hidden(batch), adapter.hidden(batch))
    other.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {name: saved.get(name) for name in more} == more
