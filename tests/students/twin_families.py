"""Small random twins of each family that transformers knows: real classes, real processors, small tokenizers of the same kind.

Widths, layers and images are small; architecture, configuration files, weights' names and chat formats are those of the
published checkpoints.
"""

from functools import cache

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText

from harness.base import shim
from students.data.conversations import Conversation, Turn

shim()

FAMILIES = ("llava", "llava_qwen", "llava_next", "llava_onevision", "smolvlm", "idefics3", "qwen2_5_vl", "qwen2_vl")
TEXTS = [
    "What is in the picture? A red car on the road.",
    "Which one is larger, the first or the second? The second one is larger than the first one.",
    "USER: ASSISTANT: User: Assistant: system user assistant You are a helpful assistant. yes no the a of and to in it",
    "How many dogs are there? There are 12 dogs. Why? Because it rains; über café naïve 你好 世界!",
]
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|begin_of_text|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@cache
def _bpe(kind):
    """Train a small BPE once: (vocabulary, merges), byte-level, or of words with byte fallback as sentencepiece makes them."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "words"))
    if kind == "words":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        special = ["<unk>", "<s>", "</s>", *(f"<0x{k:02X}>" for k in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    import json

    made = json.loads(tokenizer.to_str())["model"]
    return made["vocab"], [tuple(pair) for pair in made["merges"]]


def llama_tokenizer():
    """Build one like LLaVA 1.5's: words with byte fallback, a first token, <image> and <pad> added at the end."""
    from transformers import LlamaTokenizer

    vocabulary, merges = _bpe("words")
    tokenizer = LlamaTokenizer(vocab=dict(vocabulary), merges=list(merges), legacy=False, pad_token="<pad>", add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def qwen_tokenizer(extra=()):
    """Build one like Qwen2's: byte-level, chat and vision marks added at the end."""
    from transformers import Qwen2Tokenizer

    vocabulary, merges = _bpe("bytes")
    tokenizer = Qwen2Tokenizer(
        vocab=dict(vocabulary), merges=list(merges), eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None
    )
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", *extra]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def smol_tokenizer():
    """Build one like SmolVLM's: byte-level, with tokens for where a tile stands."""
    from transformers import GPT2Tokenizer

    vocabulary, merges = _bpe("bytes")
    tokenizer = GPT2Tokenizer(
        vocab=dict(vocabulary), merges=list(merges), eos_token="<end_of_utterance>", bos_token="<|im_start|>",
        pad_token="<|im_end|>", unk_token="<|endoftext|>",
    )  # fmt: skip
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ["<|begin_of_text|>", "<fake_token_around_image>", "<image>", "<global-img>", "<video>", *places]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def _llama(tokenizer, hidden, layers, vocabulary=None):
    return {
        "model_type": "llama",
        "vocab_size": vocabulary or len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        **_ends(tokenizer),
    }


def _ends(tokenizer):
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _vision(kind, image=32, patch=8):
    return {
        "model_type": kind, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": image, "patch_size": patch, "initializer_range": 0.2,
    }  # fmt: skip


def _clip_pictures(kind):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    if kind == "clip":
        return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return SiglipImageProcessorPil(size={"height": 32, "width": 32})


def _llava(hidden, layers, vocabulary):
    from transformers import LlavaConfig, LlavaProcessor

    tokenizer = llama_tokenizer()
    config = LlavaConfig(
        vision_config=_vision("clip_vision_model"), text_config=_llama(tokenizer, hidden, layers, vocabulary),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2, image_seq_length=16,
        vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    processor = LlavaProcessor(
        _clip_pictures("clip"), tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    return config, processor


def _qwen2(tokenizer, hidden, layers, vocabulary=None):
    return {**_llama(tokenizer, hidden, layers, vocabulary), "model_type": "qwen2"}


def _llava_qwen(hidden, layers, vocabulary):
    from transformers import LlavaConfig, LlavaProcessor

    tokenizer = qwen_tokenizer(extra=("<image>",))
    config = LlavaConfig(
        vision_config={**_vision("siglip_vision_model"), "vision_use_head": False},
        text_config=_qwen2(tokenizer, hidden, layers, vocabulary),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2, image_seq_length=16,
        vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    processor = LlavaProcessor(
        _clip_pictures("siglip"), tokenizer, patch_size=8, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, chat_template=CHATML.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return config, processor


GRID = [[32, 64], [64, 32], [64, 64], [32, 96]]


def _llava_next(hidden, layers, vocabulary):
    from transformers import LlavaNextConfig, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = llama_tokenizer()
    config = LlavaNextConfig(
        vision_config=_vision("clip_vision_model"), text_config=_llama(tokenizer, hidden, layers, vocabulary),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2, image_grid_pinpoints=GRID,
        vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=GRID
    )
    processor = LlavaNextProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    return config, processor


def _llava_onevision(hidden, layers, vocabulary):
    from transformers import LlavaOnevisionConfig, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    tokenizer = qwen_tokenizer(extra=("<image>", "<video>"))
    config = LlavaOnevisionConfig(
        vision_config={**_vision("siglip_vision_model"), "vision_use_head": False},
        text_config=_qwen2(tokenizer, hidden, layers, vocabulary), vision_feature_layer=-1, image_grid_pinpoints=GRID,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    pictures = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=GRID)
    processor = LlavaOnevisionProcessor(
        pictures, tokenizer, LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )  # fmt: skip
    return config, processor


def _smolvlm(hidden, layers, vocabulary):
    from transformers import SmolVLMConfig, SmolVLMProcessor, SmolVLMVideoProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    tokenizer = smol_tokenizer()
    config = SmolVLMConfig(
        vision_config=_vision("smolvlm_vision"), text_config=_llama(tokenizer, hidden, layers, vocabulary), scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    pictures = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = SmolVLMProcessor(
        pictures, tokenizer, SmolVLMVideoProcessor(), image_seq_len=4, chat_template=DEFAULT_CHAT_TEMPLATE
    )
    return config, processor


def _idefics3(hidden, layers, vocabulary):
    from transformers import Idefics3Config, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = smol_tokenizer()
    config = Idefics3Config(
        vision_config=_vision("idefics3_vision"), text_config=_llama(tokenizer, hidden, layers, vocabulary), scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return config, Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)


def _qwen_vl(kind, hidden, layers, vocabulary):
    import transformers
    from transformers import Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = qwen_tokenizer()
    name = {"qwen2_5_vl": "Qwen2_5_VL", "qwen2_vl": "Qwen2VL"}[kind]
    vision = {"depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3}
    if kind == "qwen2_5_vl":
        vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": hidden, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1]}
    else:
        vision |= {"embed_dim": 16, "hidden_size": hidden, "mlp_ratio": 2}
    text = _llama(tokenizer, hidden, layers, vocabulary)
    text.pop("model_type")
    axes = {"rope_type": "default", "mrope_section": [1, 1, hidden // 4 // 2 - 2], "rope_theta": 10000.0}
    ids = {
        f"{what}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for what, token in (
            ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end"),
        )
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        vision_config={**vision, "initializer_range": 0.2}, text_config={**text, "rope_parameters": axes},
        tie_word_embeddings=True, **ids,
    )  # fmt: skip
    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 1024}, patch_size=4, temporal_patch_size=2, merge_size=2
    )
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = getattr(transformers, f"{name}Processor")(pictures, tokenizer, Qwen2VLVideoProcessor(), chat_template=template)
    return config, processor


def twin(family, folder, size="student", seed=0, vocabulary=None):
    """Write a random checkpoint of a family into ``folder``.

    Args:
        family: one of :data:`FAMILIES`; "llava_qwen" is a llava with SigLIP and Qwen2 inside.
        folder: where to.
        size: "student" (16 channels, 1 layer) or "teacher" (32 channels, 2 layers).
        seed: of the weights.
        vocabulary: rows of the head, where it is to be padded.
    """
    hidden, layers = {"student": (16, 1), "teacher": (32, 2)}[size]
    if family in ("qwen2_5_vl", "qwen2_vl"):
        config, processor = _qwen_vl(family, 2 * hidden, layers, vocabulary)  # heads wide enough for three axes
    else:
        config, processor = globals()[f"_{family}"](hidden, layers, vocabulary)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():  # biases start at zero, and would hide that one is forgotten
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(height, width, seed=0):
    """Draw random pixels uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def talk(*turns, name="row", images=0):
    """Make a conversation of (question, reply) pairs that shows images "0", "1", ..."""
    return Conversation(name, "toy", tuple(map(str, range(images))), tuple(Turn(*turn) for turn in turns))
