"""Names of weights as the hub has them, and TinyLLaVA (the paper's LLaVA-Qwen) beside its parts put together by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from twin_families import picture, qwen_tokenizer, talk, twin

from harness.base import UserError
from students import models
from students.models.llava import LlavaAdapter
from tasks.lmms import CheckpointModel

SHOT = picture(40, 60)
TALK = talk(("<image>\nWhat is in the picture?", "A red car."), ("Why?", "It rains."), images=1)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite"
    " answers to the user's questions. "
)


def supervised_logits(adapter, row):
    batch = adapter.collate([row], (0,))
    with torch.no_grad():
        return adapter.head(adapter.supervised(adapter.hidden(batch), batch))


@pytest.mark.parametrize("family", ["llava", "llava_qwen", "llava_next", "llava_onevision"])
def test_the_hubs_names_of_weights_are_read(tmp_path, family):
    """Towers were a module deeper when these were published."""
    folder = twin(family, tmp_path / family)
    before = models.load(folder)
    row = before.row(TALK, [SHOT])
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(supervised_logits(models.load(folder), row), supervised_logits(before, row))


# ---- TinyLLaVA -------------------------------------------------------------------------------------------------------------


def parts(tower="siglip_vision_model"):
    """Make the three parts with transformers and torch, and what config.json says of them."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        Qwen2Config,
        Qwen2ForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32}
    torch.manual_seed(0)
    kinds = {
        "siglip_vision_model": (SiglipVisionConfig, SiglipVisionModel),
        "clip_vision_model": (CLIPVisionConfig, CLIPVisionModel),
    }
    config, model = kinds[tower]
    vision = model(config(**sizes, patch_size=8))
    tokenizer = qwen_tokenizer()
    text = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer) + 13, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=True,
        )
    )  # fmt: skip
    connector = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.GELU(), torch.nn.Linear(16, 16))
    settings = {
        "model_type": "tinyllava", "architectures": ["TinyLlavaForConditionalGeneration"], "connector_type": "mlp2x_gelu",
        "auto_map": {"AutoModelForCausalLM": "modeling_tinyllava_qwen2.TinyLlavaForConditionalGeneration"},
        "llm_model_name_or_path": "Qwen/Qwen2.5-0.5B", "image_aspect_ratio": "square", "image_token_index": -200,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "patch",
        "text_config": text.config.to_dict(), "vision_config": {**vision.config.to_dict(), "model_type": tower},
    }  # fmt: skip
    return vision.eval(), text.eval(), connector, tokenizer, settings


def published(folder, made, layout="whole"):
    """Write the parts as the hub has them ("whole"), or as training leaves them ("parts")."""
    vision, text, connector, tokenizer, settings = made
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    tokenizer.save_pretrained(folder)
    tower = {("" if k.startswith("vision_model.") else "vision_model.") + k: v for k, v in vision.state_dict().items()}
    language = {k: v for k, v in text.state_dict().items() if k != "lm_head.weight"}
    inner = {f"_connector.{k}": v for k, v in connector.state_dict().items()}
    if layout == "whole":
        tensors = {f"language_model.{k}": v for k, v in language.items()} | {f"connector.{k}": v for k, v in inner.items()}
        tensors |= {f"vision_tower._vision_tower.{k}": v for k, v in tower.items()}
        save_file({k: v.clone() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    for name, tensors in (("language_model", language), ("vision_tower", tower), ("connector", inner)):
        (folder / name).mkdir()
        torch.save(tensors, folder / name / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("layout", ["whole", "parts"])
@pytest.mark.parametrize("tower", ["siglip_vision_model", "clip_vision_model"])
def test_tinyllava_is_its_parts_put_together(tmp_path, layout, tower):
    made = parts(tower)
    vision, text, connector, tokenizer, _ = made
    adapter = models.load(published(tmp_path / "tiny", made, layout))
    row = adapter.row(TALK, [SHOT])
    n_v = adapter.vision_tokens
    assert n_v == (16 if tower == "clip_vision_model" else 15)  # the first one is left out even where it is no class token

    pixels = adapter.pixels([SHOT])
    pieces = [(SYSTEM + "USER: ", 0), ("\nWhat is in the picture? ASSISTANT:", 0), (" A red car.<|endoftext|>", 1)]
    pieces += [("USER: Why? ASSISTANT:", 0), (" It rains.<|endoftext|>", 1)]
    ids = [tokenizer(piece)["input_ids"] for piece, _ in pieces]
    with torch.no_grad():
        features = connector(vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])[0]
        embedded = [text.get_input_embeddings()(torch.tensor(part)) for part in ids]
        embeds = torch.cat([embedded[0], features, *embedded[1:]])
        logits = text(inputs_embeds=embeds[None]).logits[0]
    learnt = [learn for (_, learn), part in zip(pieces, ids, strict=True) for _ in part]
    learnt = learnt[: len(ids[0])] + [0] * n_v + learnt[len(ids[0]) :]
    assert row.supervised.tolist() == [bool(k) for k in learnt]
    places = np.flatnonzero(learnt)
    assert row.ids[places].tolist() == [token for (_, learn), part in zip(pieces, ids, strict=True) if learn for token in part]
    torch.testing.assert_close(supervised_logits(adapter, row), logits[places - 1], rtol=1e-5, atol=1e-5)


def test_a_tinyllava_is_saved_as_a_llava(tmp_path):
    adapter = models.load(published(tmp_path / "tiny", parts()))
    adapter.save(tmp_path / "student")
    again = models.load(tmp_path / "student")
    assert type(again) is LlavaAdapter
    assert json.loads((tmp_path / "student" / "config.json").read_text())["model_type"] == "llava"
    row = again.row(TALK, [SHOT])
    mine = adapter.row(TALK, [SHOT])
    assert row.ids.tolist() == mine.ids.tolist()
    assert again.reading() == adapter.reading(), "it takes the tokens that were stored for what it started from"
    cut = again.cut(adapter.read(TALK, None)[0], TALK.id, [SHOT])
    assert torch.equal(cut.pixels["pixel_values"], mine.pixels["pixel_values"])
    torch.testing.assert_close(supervised_logits(again, row), supervised_logits(adapter, row))
    assert again.model.generation_config.eos_token_id == again.processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_a_tinyllava_is_evaluated_as_it_is(tmp_path):
    folder = published(tmp_path / "tiny", parts())
    adapter = models.load(folder)
    models.register()
    model, processor = CheckpointModel(folder).model, CheckpointModel(folder).processor
    row = adapter.row(TALK, [SHOT])
    assert processor.chat_template == adapter.processor.chat_template
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(row.ids)[None], pixel_values=adapter.pixels([SHOT])).logits[0]
    torch.testing.assert_close(logits[np.flatnonzero(row.supervised) - 1], supervised_logits(adapter, row))


def test_pictures_are_padded_where_the_settings_say_so(tmp_path):
    made = parts()
    square = models.load(published(tmp_path / "square", made))
    made[-1]["image_aspect_ratio"] = "pad"
    padded = models.load(published(tmp_path / "pad", made))
    wide = np.full((16, 32, 3), 255, np.uint8)
    assert square.pixels([wide]).min() == 1
    made = padded.pixels([wide])[0]
    assert made.shape == (3, 32, 32)
    torch.testing.assert_close(made[:, 0], torch.zeros(3, 32), rtol=0, atol=0.01)  # the mean colour above
    assert made[:, 16].min() > 0.99
    row = padded.row(TALK, [wide])
    assert row.ids.tolist() == square.row(TALK, [wide]).ids.tolist()
    cut = padded.cut(padded.read(TALK, None)[0], TALK.id, [wide])
    assert torch.equal(cut.pixels["pixel_values"], row.pixels["pixel_values"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"connector_type": "resampler"}, "has connector_type 'resampler'; this TinyLLaVA adapter knows: mlp2x_gelu"),
        ({"text_config": {"model_type": "phi"}}, "has text_config.model_type 'phi'"),
        ({"image_aspect_ratio": "anyres"}, "has image_aspect_ratio 'anyres'"),
        ({"vision_config": None}, "has vision_config.model_type None"),
    ],
)
def test_relatives_of_another_make_are_refused(tmp_path, change, message):
    made = parts()
    made[-1].update(change)
    with pytest.raises(UserError, match=message) as caught:
        models.load(published(tmp_path / "tiny", made))
    assert str(tmp_path / "tiny") in str(caught.value)


def test_a_tinyllava_that_is_not_whole_is_refused(tmp_path):
    whole = published(tmp_path / "whole", parts())
    folder = shutil.copytree(whole, tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")

    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            models.load(folder)
        assert str(folder) in str(caught.value)

    save_file({k: v for k, v in tensors.items() if "_connector.2" not in k}, folder / "model.safetensors")
    refused(r"lacks weight\(s\): .*linear_2")
    save_file({**tensors, "language_model.model.extra.weight": torch.zeros(1)}, folder / "model.safetensors")
    refused(r"has unknown weight\(s\): .*extra")
    (folder / "tokenizer_config.json").unlink()
    refused(r"has no tokenizer .* copy those of Qwen/Qwen2.5-0.5B into it")
    separate = published(tmp_path / "separate", parts(), "parts")
    (separate / "connector" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="connector has no weights"):
        models.load(separate)
