"""A MobileVLM V2 to start training from: a published language model, a published CLIP tower, and a new or given projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base import UserError, unknown
from students.models._load import configuration, weights
from students.models._mobilevlm_config import CLIP_L, MobileVlmConfig, complete, pixel_settings, read_sizes, vision_sizes
from students.models._mobilevlm_files import TOWER, read, tower_weights
from students.models._mobilevlm_model import LdpV2, MobileLlamaForCausalLM
from students.models._mobilevlm_processor import MobileVlmProcessor, MobileVlmTokenizer

#: Keys of the language model's config.json that the assembled one keeps.
_LLAMA = (
    "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
    "rope_scaling", "rope_theta", "rope_parameters", "tie_word_embeddings", "torch_dtype", "dtype", "vocab_size",
)  # fmt: skip
_PROJECTOR = "model.mm_projector."


def assemble(language: Path, tower: Path, out: Path, seed: int, projector: Path | None = None) -> None:
    """Write a checkpoint in the published layout (safetensors) of parts.

    Args:
        language: folder of a Llama, as ``mtgv/MobileLLaMA-1.4B-Base``, with tokenizer.model.
        tower: folder of a CLIP, as ``openai/clip-vit-large-patch14-336``.
        out: where; made where it is missing.
        seed: of a new projector, which gets torch's own initialisation, as in the published training code.
        projector: weights of a trained one (``mm_projector.bin`` or its folder), or None for a new one.

    Raises:
        UserError: naming the part that is missing, damaged, or does not fit the others.
    """
    from safetensors.torch import save_file

    config = _config(language, tower)
    tokenizer = MobileVlmTokenizer.read(language, config)
    parts = _language_weights(language)
    dtype = parts["model.embed_tokens.weight"].dtype if "model.embed_tokens.weight" in parts else torch.float32
    parts |= {f"{TOWER}{name}": value.to(dtype) for name, value in tower_weights(tower).items()}
    made = _projector_weights(config, seed, projector)
    parts |= {f"{_PROJECTOR}{name}": value.to(dtype).contiguous() for name, value in made.items()}
    config.dtype = dtype
    config.architectures = [MobileLlamaForCausalLM.__name__]
    _compare(config, parts, language, tower)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in parts.items()}, out / "model.safetensors", {"format": "pt"})
    config.save_pretrained(out)
    names = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    files = {name: (language / name).read_bytes() for name in names if (language / name).is_file()}
    MobileVlmProcessor(tokenizer, pixel_settings(str(tower.resolve()), tower), True, files).save_pretrained(out)


def _config(language: Path, tower: Path) -> MobileVlmConfig:
    given = configuration(language)
    if given["model_type"] not in ("llama", "mobilevlm"):
        raise UserError(f"{language / 'config.json'}: {unknown('language model', given['model_type'], ('llama',))}")
    sizes = read_sizes(tower)
    known = {name: sizes.get(name) for name in vision_sizes(CLIP_L, tower)} == vision_sizes(CLIP_L, tower)
    config = MobileVlmConfig(
        **{name: given[name] for name in _LLAMA if name in given},
        mm_vision_tower=CLIP_L if known else tower.name, vision_tower_type="clip", mm_projector_type="ldpnetv2",
        mm_hidden_size=sizes["hidden_size"], mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        image_aspect_ratio="pad", mm_vision_config=sizes, use_mm_proj=True, mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
    )  # fmt: skip
    return complete(config, language)


def _language_weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in weights(folder):
        found |= read(file)
    return {
        name: value
        for name, value in found.items()
        if not name.endswith(".rotary_emb.inv_freq") and not name.startswith((TOWER, _PROJECTOR))
    }


def _projector_weights(config: MobileVlmConfig, seed: int, given: Path | None) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: dict[str, Tensor] = LdpV2(int(config.mm_hidden_size or 0), config.hidden_size).state_dict()
    if given is None:
        return made
    file = given / "mm_projector.bin" if given.is_dir() else given
    if not file.is_file():
        raise UserError(f"{file} is missing: expected the weights of a trained projector (mm_projector.bin)")
    found = {name.rpartition("mm_projector.")[2]: value for name, value in read(file).items() if "mm_projector." in name}
    wrong = sorted(n for n in made.keys() | found.keys() if n not in made or n not in found or made[n].shape != found[n].shape)
    if wrong:
        raise UserError(f"{file} is no LDPv2 projector of this width: {wrong[0]} is missing, unknown or of another shape")
    return found


def _compare(config: MobileVlmConfig, parts: dict[str, Any], language: Path, tower: Path) -> None:
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in MobileLlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
        parts.pop("lm_head.weight", None)
    wrong = sorted(n for n in expected.keys() | parts.keys() if n not in parts or tuple(parts[n].shape) != expected.get(n))
    if wrong:
        where = tower if wrong[0].startswith(TOWER) else language
        raise UserError(
            f"{where}: weight {wrong[0].removeprefix(TOWER)} is missing, unknown or of another shape than config.json says"
        )
