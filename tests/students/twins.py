"""Small random MobileVLM V2 checkpoints in the layout that is published on the hub, written without any class of ours.

The names of weights and configuration are those of ``mtgv/MobileVLM_V2-1.7B`` (config.json, pytorch_model.bin, tokenizer.model,
tokenizer_config.json, special_tokens_map.json, generation_config.json); the sizes are small enough for a test.
"""

import functools
import io
import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

#: hidden, intermediate, layers, heads of the language models. Teacher and student differ in all of them.
SIZES = {"student": (32, 64, 2, 4), "teacher": (48, 96, 3, 6)}
#: hidden, intermediate, layers, heads, image, patch of the tower that both share: 24 x 24 patches, as the published one has.
TOWER = (16, 32, 3, 2, 48, 2)
TOWER_FOLDER = "clip-twin"
VOCABULARY = 384
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite"
    " answers to the user's questions. USER: What is in the picture? ASSISTANT: There is a red circle and a blue square.",
    "USER: Answer with the option's letter from the given choices directly. ASSISTANT: B",
    "Which of these colours is the largest shape? A. red B. blue C. green D. dark green",
    "How many green triangles are there? There are three of them, two small and one large.",
    "a small dog on a large chair beside an open window, in the style of a quiet painting",
    "Is there a yellow star in the image? Answer the question using a single word or phrase. yes no",
)


@functools.cache
def sentencepiece_model() -> bytes:
    """Train a small vocabulary with the settings of LLaMA's: BPE with byte fallback, digits split, no normalisation."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 3), model_writer=made, model_type="bpe", vocab_size=VOCABULARY, byte_fallback=True,
        split_digits=True, allow_whitespace_only_pieces=True, remove_extra_whitespaces=False, add_dummy_prefix=True,
        normalization_rule_name="identity", unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return made.getvalue()


def clip_weights(seed: int) -> dict[str, torch.Tensor]:
    """Return random weights of a CLIP vision tower by the names that CLIP is published with, position ids included."""
    hidden, intermediate, layers, _, image, patch = TOWER
    shapes = {
        "embeddings.class_embedding": (hidden,),
        "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        "embeddings.position_embedding.weight": ((image // patch) ** 2 + 1, hidden),
        "pre_layrnorm.weight": (hidden,), "pre_layrnorm.bias": (hidden,),
        "post_layernorm.weight": (hidden,), "post_layernorm.bias": (hidden,),
    }  # fmt: skip
    for layer in range(layers):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"encoder.layers.{layer}.self_attn.{part}.weight"] = (hidden, hidden)
            shapes[f"encoder.layers.{layer}.self_attn.{part}.bias"] = (hidden,)
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"encoder.layers.{layer}.{norm}.weight"] = (hidden,)
            shapes[f"encoder.layers.{layer}.{norm}.bias"] = (hidden,)
        for part, (rows, columns) in {"fc1": (intermediate, hidden), "fc2": (hidden, intermediate)}.items():
            shapes[f"encoder.layers.{layer}.mlp.{part}.weight"] = (rows, columns)
            shapes[f"encoder.layers.{layer}.mlp.{part}.bias"] = (rows,)
    made = _random({f"vision_model.{name}": shape for name, shape in shapes.items()}, seed)
    made["vision_model.embeddings.position_ids"] = torch.arange((image // patch) ** 2 + 1)[None]
    return made


def llama_weights(size: str, seed: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Return random weights of a Llama by their published names, the old rotary buffers included."""
    hidden, intermediate, layers, heads = SIZES[size]
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    shapes["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{layer}.self_attn.{part}.weight"] = (hidden, hidden)
        shapes[f"model.layers.{layer}.mlp.gate_proj.weight"] = (intermediate, hidden)
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (hidden, intermediate)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
    made = _random(shapes, seed)
    channels = hidden // heads
    for layer in range(layers):
        rates = 1.0 / 10000 ** (torch.arange(0, channels, 2) / channels)
        made[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = rates
    return made


def projector_weights(size: str, seed: int) -> dict[str, torch.Tensor]:
    """Return random weights of an LDPv2 projector by their published names."""
    hidden, inner = SIZES[size][0], TOWER[0]
    shapes = {
        "mlp.mlp.0.weight": (hidden, inner), "mlp.mlp.0.bias": (hidden,),
        "mlp.mlp.2.weight": (hidden, hidden), "mlp.mlp.2.bias": (hidden,),
        "peg.peg.0.weight": (hidden, 1, 3, 3), "peg.peg.0.bias": (hidden,),
    }  # fmt: skip
    return _random({f"model.mm_projector.{name}": shape for name, shape in shapes.items()}, seed)


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=source)
        gain = name.endswith("norm.weight") or "norm1.weight" in name or "norm2.weight" in name
        fan = max(1, noise[0].numel()) if noise.ndim > 1 else 16
        made[name] = 1 + 0.2 * noise if gain else noise * (1.0 if "embed" in name else fan**-0.5)
    return made


def clip_tower(folder: Path, seed: int = 7, weights: bool = True) -> Path:
    """Write a CLIP folder as ``openai/clip-vit-large-patch14-336`` is laid out: configuration, preprocessing, weights."""
    hidden, intermediate, layers, heads, image, patch = TOWER
    folder.mkdir(parents=True, exist_ok=True)
    vision = {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "image_size": image, "patch_size": patch, "hidden_act": "quick_gelu", "projection_dim": hidden,
        "layer_norm_eps": 1e-5, "model_type": "clip_vision_model",
    }  # fmt: skip
    _json(folder / "config.json", {"architectures": ["CLIPModel"], "model_type": "clip", "vision_config": vision})
    side = {"height": image, "width": image}
    _json(folder / "preprocessor_config.json", {
        "crop_size": side, "size": {"shortest_edge": image}, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD, "resample": 3,
    })  # fmt: skip
    if weights:
        torch.save(clip_weights(seed), folder / "pytorch_model.bin")
    return folder


def published_config(size: str, tower: str, vocabulary: int) -> dict:
    """Return config.json with the keys of the published one, in their order."""
    hidden, intermediate, layers, heads = SIZES[size]
    return {
        "_name_or_path": f"twins/{size}", "architectures": ["MobileLlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False, "hidden_act": "silu", "hidden_size": hidden, "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None, "initializer_range": 0.02, "intermediate_size": intermediate,
        "max_position_embeddings": 2048, "max_sequence_length": 2048, "mm_hidden_size": TOWER[0], "mm_projector_lr": None,
        "mm_projector_type": "ldpnetv2", "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": tower,
        "model_type": "mobilevlm", "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": heads,
        "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.33.1",
        "tune_mm_mlp_adapter": False, "use_cache": True, "use_mm_proj": True, "vision_tower_type": "clip",
        "vocab_size": vocabulary,
    }  # fmt: skip


def tokenizer_files(folder: Path) -> int:
    """Write the published tokenizer files; returns the size of the vocabulary."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    tokens = {
        name: {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, content in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    _json(folder / "special_tokens_map.json", {**tokens, "pad_token": "<unk>"})
    _json(folder / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": 2048,
        "pad_token": None, "padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
        **{name: {"__type": "AddedToken", **token} for name, token in tokens.items()},
    })  # fmt: skip
    return int(sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).get_piece_size())


def mobilellama_twin(folder: Path, size: str = "student", seed: int = 0) -> Path:
    """Write a small random language model as ``mtgv/MobileLLaMA-1.4B-Base`` is laid out (pytorch_model.bin)."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer_files(folder)
    config = published_config(size, "", vocabulary)
    kept = {key: value for key, value in config.items() if "mm_" not in key and "image_" not in key and "tower" not in key}
    _json(folder / "config.json", {**kept, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    torch.save(llama_weights(size, seed, vocabulary), folder / "pytorch_model.bin")
    return folder


def mobilevlm_twin(folder: Path, size: str = "student", layout: str = "bin", seed: int = 0) -> Path:
    """Write a small random MobileVLM V2 in the published layout, and the tower that it names in ``folder/clip-twin``.

    Args:
        folder: where; made where it is missing.
        size: "student" or "teacher", which differ in width, depth and heads.
        layout: "bin", "safetensors" or "sharded" (two .bin files with an index).
        seed: of language model and projector; the tower is the same for all seeds.

    Returns:
        The folder.
    """
    clip_tower(folder / TOWER_FOLDER, weights=False)
    vocabulary = tokenizer_files(folder)
    _json(folder / "config.json", published_config(size, TOWER_FOLDER, vocabulary))
    _json(folder / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "4.33.1",
    })  # fmt: skip
    weights = llama_weights(size, seed, vocabulary) | projector_weights(size, seed + 1000)
    weights |= {f"model.vision_tower.vision_tower.{name}": value for name, value in clip_weights(7).items()}
    if layout == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif layout == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif layout == "sharded":
        names = sorted(weights)
        parts = {f"pytorch_model-0000{k + 1}-of-00002.bin": names[k::2] for k in range(2)}
        for file, own in parts.items():
            torch.save({name: weights[name] for name in own}, folder / file)
        table = {name: file for file, own in parts.items() for name in own}
        _json(folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": 1}, "weight_map": table})
    else:
        raise ValueError(f"no layout {layout!r}")
    return folder


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
