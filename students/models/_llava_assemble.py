"""A LLaVA to start training from: a published language model (Llama, Qwen2), a published tower (CLIP, SigLIP), a new projector.

It is what TinyLLaVA starts from under Beta-KD's Table 5 (github Jingchensun/llava-kd, scripts/train/llava_kd_qwen2 at 3fe6cc5),
so that it has as many tokens an image and the same conversation format as a TinyLLaVA that teaches it; see tinyllava.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.base import UserError, shim, unknown
from students.models._load import configuration, explained, quiet, weights
from students.models.tinyllava import TEMPLATE

shim()  # before transformers' image classes look for torchvision

MARK = "<image>"
TOWERS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
LANGUAGES = ("llama", "qwen2")
#: What ends a reply in the template; another tokenizer's own end of text takes its place.
_END = "<|endoftext|>"


def assemble(language: Path, tower: Path, out: Path, seed: int, projector: Path | None = None) -> None:
    """Write a LLaVA of parts as a folder that transformers' ``LlavaForConditionalGeneration`` loads.

    Args:
        language: folder of a Llama or Qwen2, as ``Qwen/Qwen2.5-0.5B``, with its tokenizer.
        tower: folder of a CLIP or SigLIP with its image processor, as ``google/siglip-so400m-patch14-384``.
        out: where; made where it is missing.
        seed: of the new projector.
        projector: none that is given can be read here.

    Raises:
        UserError: naming the part that is missing, damaged, or of a kind that does not fit.
    """
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    if projector is not None:
        raise UserError(f"projector {projector}: a LLaVA is put together with a new projector; leave the field out")
    for folder, kind, known in ((language, "language model", LANGUAGES), (tower, "vision tower", TOWERS)):
        found = configuration(folder)["model_type"]
        if found not in known:
            raise UserError(f"{folder / 'config.json'}: {unknown(kind, found, known)}")
        weights(folder)
    tokenizer = _tokenizer(language)
    config = _config(language, tower, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlavaForConditionalGeneration(config)
    given = {"local_files_only": True, "trust_remote_code": False, "dtype": torch.float32, "weights_only": True}
    with explained(language), quiet():
        speaker: Any = AutoModelForCausalLM.from_pretrained(language, **given)
    with explained(tower), quiet():
        eyes: Any = type(model.model.vision_tower).from_pretrained(tower, config=config.vision_config, **given)
    rows = speaker.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        speaker.resize_token_embeddings(len(tokenizer))
    model.model.language_model.load_state_dict(speaker.model.state_dict())
    model.lm_head.load_state_dict(speaker.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(eyes.state_dict())
    model.to(getattr(torch, str(configuration(language).get("torch_dtype", "float32"))))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    _processor(tower, tokenizer, config).save_pretrained(out)


def _tokenizer(language: Path) -> Any:
    """Return the language model's tokenizer with the mark of an image."""
    from transformers import AutoTokenizer

    with explained(language), quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(language, local_files_only=True, trust_remote_code=False)
    if _END in tokenizer.get_vocab():
        tokenizer.eos_token = tokenizer.pad_token = _END  # a chat model's own end is that of a turn
    if tokenizer.eos_token is None:
        raise UserError(f"{language}: the tokenizer has no end of text (eos_token), which a reply ends with")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
    return tokenizer


def _config(language: Path, tower: Path, tokenizer: Any) -> Any:
    from transformers import AutoConfig, LlavaConfig

    with explained(language), quiet():
        text: Any = AutoConfig.from_pretrained(language, local_files_only=True, trust_remote_code=False)
    with explained(tower), quiet():
        found: Any = AutoConfig.from_pretrained(tower, local_files_only=True, trust_remote_code=False)
    vision = getattr(found, "vision_config", found)
    siglip = configuration(tower)["model_type"].startswith("siglip")
    if siglip:
        vision.vision_use_head = False  # the pooled output is not looked at
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    side = vision.image_size // vision.patch_size
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(MARK),
        vision_feature_layer=-2, vision_feature_select_strategy="default",
        projector_hidden_act="gelu", image_seq_length=side * side - siglip, tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip


def _processor(tower: Path, tokenizer: Any, config: Any) -> Any:
    from transformers import AutoImageProcessor, LlavaProcessor

    with explained(tower), quiet():
        pictures: Any = AutoImageProcessor.from_pretrained(tower, local_files_only=True, backend="pil", trust_remote_code=False)
    clip = not configuration(tower)["model_type"].startswith("siglip")
    return LlavaProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default", num_additional_image_tokens=int(clip), image_token=MARK,
        chat_template=TEMPLATE.replace(_END, tokenizer.eos_token),
    )  # fmt: skip
