"""TinyLLaVA with Qwen2 inside, as published: what the paper's Table 5 calls LLaVA-Qwen, and LLaVA-KD starts from.

It is a LLaVA 1.5 in other words: a SigLIP or CLIP tower, two linear layers, a Qwen2. Names of weights and of settings are
translated, so that the model is transformers' own LLaVA from here on, and students are saved as one. Two layouts are read: one
set of weights (the hub's), and three folders ``language_model``, ``vision_tower`` and ``connector`` (what its training writes).

Sources: TinyLLaVA_Factory (configuration_tinyllava.py, modeling_tinyllava.py, vision_tower/base.py, connector/mlp.py,
data/image_preprocess.py) and llava-kd (eval_model_load.py, data/template/qwen2_base_template.py). As there, ``patch`` leaves
out the first token of the tower even where it is no class token, as with SigLIP: 728 tokens an image of 384 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from harness.base import UserError
from students.models._load import configuration, explained, quiet, weights
from students.models.llava import LlavaAdapter

#: How a conversation is written; the last words of a reply are followed by the end token at once.
TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite"
    " answers to the user's questions. "
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'][0]['text'] + '<|endoftext|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_END = "<|endoftext|>"
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_PARTS = ("language_model", "vision_tower", "connector")


class TinyLlavaAdapter(LlavaAdapter):
    """One TinyLLaVA as a LLaVA, with a processor made of its settings."""

    family = "tinyllava"

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Load a checkpoint folder.

        Raises:
            UserError: naming the folder when something is missing, damaged or not as TinyLLaVA with Qwen2 has it.
        """
        model, processor, _ = translated(Path(folder), dtype)
        return cls(model.to(device).eval(), processor)


def translated(folder: Path, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
    """Read a folder as transformers' LLaVA: model, processor, and transformers' report of the loading.

    Raises:
        UserError: see :meth:`TinyLlavaAdapter.load`.
    """
    settings = configuration(folder)
    _refuse_other(folder, settings)
    with explained(folder), quiet():
        from transformers import LlavaForConditionalGeneration

        tokenizer = _tokenizer(folder, settings)
        model, report = LlavaForConditionalGeneration.from_pretrained(
            None, config=_config(settings, tokenizer), state_dict=dict(_renamed(folder)), dtype=dtype,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    for kind, what in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown"), ("mismatched_keys", "has misshapen")):
        if report[kind]:
            names = ", ".join(sorted(str(name) for name in report[kind])[:3])
            raise UserError(f"{folder} {what} weight(s): {names}; expected TinyLLaVA's layout; download it again")
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(_END)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, _processor(settings, tokenizer), report


def _refuse_other(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse relatives of another make: their parts are not LLaVA's."""
    vision, text = settings.get("vision_config") or {}, settings.get("text_config") or {}
    for name, value, known in (
        ("text_config.model_type", text.get("model_type"), ("qwen2",)),
        ("vision_config.model_type", vision.get("model_type"), ("siglip_vision_model", "clip_vision_model")),
        ("connector_type", settings.get("connector_type"), ("mlp2x_gelu",)),
        ("vision_feature_select_strategy", settings.get("vision_feature_select_strategy", "patch"), tuple(_STRATEGIES)),
        ("image_aspect_ratio", settings.get("image_aspect_ratio", "square"), ("square", "pad")),
    ):
        if value not in known:
            raise UserError(f"{folder / 'config.json'} has {name} {value!r}; this TinyLLaVA adapter knows: {', '.join(known)}")


def _tokenizer(folder: Path, settings: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(
            f"{folder} has no tokenizer (tokenizer_config.json, vocab.json, merges.txt); copy those of"
            f" {settings.get('tokenizer_name_or_path') or settings.get('llm_model_name_or_path')} into it"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    tokenizer.eos_token = tokenizer.pad_token = _END
    width = settings["text_config"]["vocab_size"]
    if tokenizer.convert_tokens_to_ids("<image>") >= width:
        raise UserError(
            f"{folder} has {width} rows of embeddings for {len(tokenizer)} tokens with <image>; the tokenizer is of another"
        )
    return tokenizer


def _config(settings: Mapping[str, Any], tokenizer: Any) -> Any:
    from transformers import LlavaConfig

    vision, text = dict(settings["vision_config"]), dict(settings["text_config"])
    if vision["model_type"] == "siglip_vision_model":
        vision["vision_use_head"] = False
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=settings.get("vision_feature_layer", -2), projector_hidden_act="gelu",
        vision_feature_select_strategy=_STRATEGIES[settings.get("vision_feature_select_strategy", "patch")],
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )  # fmt: skip


def _processor(settings: Mapping[str, Any], tokenizer: Any) -> Any:
    """Make the processor of the tower's own preprocessing: a resize to its square, after padding where the settings say so."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    vision = settings["vision_config"]
    side, clip = vision["image_size"], vision["model_type"] == "clip_vision_model"
    square = {"height": side, "width": side}
    if settings.get("image_aspect_ratio", "square") == "pad":
        colours = {} if clip else {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        pictures = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": side}, crop_size=square, **colours)
    elif clip:
        pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    else:
        pictures = SiglipImageProcessorPil(size=square)
    return LlavaProcessor(
        pictures, tokenizer, patch_size=vision["patch_size"], num_additional_image_tokens=int(clip), chat_template=TEMPLATE,
        vision_feature_select_strategy=_STRATEGIES[settings.get("vision_feature_select_strategy", "patch")],
    )  # fmt: skip


def _renamed(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by LLaVA's names; what a LLaVA does without (SigLIP's pooling head) is left out."""
    for name, tensor in _tensors(folder):
        part, _, rest = name.partition(".")
        if part == "vision_tower":
            rest = rest.removeprefix("_vision_tower.").removeprefix("vision_model.")
            if not rest.startswith("head.") and not rest.endswith("position_ids"):
                yield f"vision_tower.vision_model.{rest}", tensor
        elif part == "connector":
            number, _, kind = rest.removeprefix("_connector.").partition(".")
            yield f"multi_modal_projector.linear_{int(number) // 2 + 1}.{kind}", tensor
        elif not rest.endswith("rotary_emb.inv_freq"):
            yield name, tensor


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by their published names, from either layout."""
    if all((folder / part).is_dir() for part in _PARTS):
        for part in _PARTS:
            inner = "_" + part + "." if part != "language_model" else ""
            for file in weights(folder / part):
                for name, tensor in _read(file).items():
                    yield f"{part}.{inner if not name.startswith(inner) else ''}{name}", tensor
        return
    for file in weights(folder):
        yield from _read(file).items()


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(file))
    found: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return found


class TinyLlavaConfig(PreTrainedConfig):  # type: ignore[misc]
    """What AutoConfig knows a TinyLLaVA by."""

    model_type = "tinyllava"


class _Model:
    """What AutoModelForImageTextToText asks for a model."""

    config_class = TinyLlavaConfig

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, output_loading_info: bool = False, **_: Any
    ) -> Any:
        model, _, report = translated(Path(folder), dtype)
        return (model.eval(), report) if output_loading_info else model.eval()


class _Processor:
    """What AutoProcessor asks for a processor."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> Any:
        settings = configuration(Path(folder))
        return _processor(settings, _tokenizer(Path(folder), settings))


def register() -> None:
    """Let transformers' Auto classes read TinyLLaVA in this process, as the LLaVA that it is."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    AutoConfig.register("tinyllava", TinyLlavaConfig, exist_ok=True)
    AutoModelForImageTextToText.register(TinyLlavaConfig, _Model, exist_ok=True)
    AutoProcessor.register(TinyLlavaConfig, _Processor, exist_ok=True)


ADAPTER = TinyLlavaAdapter
