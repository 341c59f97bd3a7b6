"""A LLaVA of parts says what its parts say."""

import numpy as np
import pytest
import torch
from twin_families import _vision, picture, qwen_tokenizer, talk

from harness.base import UserError
from students import models
from students.models._llava_assemble import assemble


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A Qwen2 and a SigLIP as they are published: each with weights of its own, SigLIP with its text half and head."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(1)
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 9, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    vision = {key: value for key, value in _vision("siglip_vision_model").items() if key != "model_type"}
    text = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder / "tower")
    side = {"height": vision["image_size"], "width": vision["image_size"]}
    SiglipImageProcessorPil(size=side).save_pretrained(folder / "tower")
    assemble(folder / "language", folder / "tower", folder / "whole", 5)
    return folder


def test_without_an_image_it_is_its_language_model(parts):
    from transformers import AutoModelForCausalLM

    adapter = models.load(parts / "whole")
    speaker = AutoModelForCausalLM.from_pretrained(parts / "language", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 9, 2, 7, 7, 30]])
    with torch.no_grad():
        ours = adapter.model(input_ids=ids).logits
        assert torch.equal(ours, speaker(input_ids=ids).logits)


def test_its_tower_is_the_published_one(parts):
    from transformers import SiglipVisionModel

    adapter = models.load(parts / "whole")
    eyes = SiglipVisionModel.from_pretrained(parts / "tower", dtype=torch.float32).eval()
    pixels = torch.randn(2, 3, eyes.config.image_size, eyes.config.image_size)
    with torch.no_grad():
        theirs = eyes(pixels, output_hidden_states=True).hidden_states[-2]
        ours = adapter.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        assert torch.equal(ours, theirs)
        assert adapter.vision_tokens == theirs.shape[1] - 1, "as TinyLLaVA, which leaves out the first"


def test_it_learns_replies_and_their_end(parts):
    adapter = models.load(parts / "whole")
    row = adapter.row(talk(("<image>\nWhat is it?", "A red car."), images=1), [picture(20, 30)])
    tokenizer = adapter.processor.tokenizer
    assert tokenizer.decode(row.ids[row.supervised]).strip() == f"A red car.{tokenizer.eos_token}"
    assert (row.ids == adapter.model.config.image_token_id).sum() == adapter.vision_tokens
    assert "USER: " in tokenizer.decode(row.ids)


def test_the_projector_depends_on_the_seed_alone(parts, tmp_path):
    def made(folder):
        return {name: value.detach().numpy() for name, value in models.load(folder).projector.named_parameters()}

    assemble(parts / "language", parts / "tower", tmp_path / "again", 5)
    assemble(parts / "language", parts / "tower", tmp_path / "other", 6)
    first, again, other = made(parts / "whole"), made(tmp_path / "again"), made(tmp_path / "other")
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["linear_1.weight"], other["linear_1.weight"])


def test_parts_that_do_not_fit_are_named(parts, tmp_path):
    with pytest.raises(UserError, match="unknown language model 'siglip'"):
        assemble(parts / "tower", parts / "tower", tmp_path / "x", 0)
    with pytest.raises(UserError, match="unknown vision tower 'qwen2'"):
        assemble(parts / "language", parts / "language", tmp_path / "x", 0)
    with pytest.raises(UserError, match="leave the field out"):
        assemble(parts / "language", parts / "tower", tmp_path / "x", 0, tmp_path)
    assert not (tmp_path / "x").exists()
