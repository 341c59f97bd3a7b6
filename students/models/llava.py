"""LLaVA (CLIP tower, two-layer projector, Llama) through transformers' own classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import UserError, shim
from students.data.conversations import Conversation, Row
from students.models._base import TAPS, Adapter
from students.shape import LlavaShape

__all__ = ["ADAPTER", "TAPS", "LlavaAdapter"]

shim()  # before transformers' image classes look for torchvision


class LlavaAdapter(Adapter):
    """One LLaVA with its processor, seen through what a distiller needs."""

    family = "llava"

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        config = model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        processor.image_tokens_each = side * side + (config.vision_feature_select_strategy != "default")

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.model.vision_tower

    @property
    def projector(self) -> Any:
        """The projector from vision features to the language model's width."""
        return self.model.model.multi_modal_projector

    @property
    def language(self) -> Any:
        """The language model without its head."""
        return self.model.model.language_model

    @property
    def vision_tokens(self) -> int:
        """n_v, the number of tokens an image takes."""
        return int(self.processor.image_tokens_each)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LlavaAdapter:
        """Load a checkpoint folder.

        Raises:
            UserError: naming the folder when weights, configuration or processor are missing or damaged.
        """
        from safetensors import SafetensorError
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        try:
            model, report = LlavaForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{folder} is not a whole LLaVA checkpoint ({type(error).__name__}: {reason})") from error
        if report["missing_keys"]:
            raise UserError(f"{folder} lacks weights: {', '.join(sorted(report['missing_keys'])[:3])} ...")
        return cls(model.to(device).eval(), processor)

    @classmethod
    def build(cls, shape: LlavaShape, tokenizer: Any, seed: int) -> LlavaAdapter:
        """Make a randomly initialised model of a given shape around a tokenizer with a chat template."""
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        vision = CLIPVisionConfig(
            hidden_size=shape.vision_hidden, intermediate_size=2 * shape.vision_hidden, num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.vision_heads, image_size=shape.image, patch_size=shape.patch,
            projection_dim=shape.vision_hidden,
        )  # fmt: skip
        text = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
            max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
            initializer_range=shape.initializer_range,
        )  # fmt: skip
        config = LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1, vision_feature_select_strategy="default",
            image_seq_length=(shape.image // shape.patch) ** 2,
            tie_word_embeddings=True, initializer_range=shape.initializer_range,
        )  # fmt: skip
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        pictures = CLIPImageProcessorPil(
            do_resize=False, do_center_crop=False, do_rescale=True, do_normalize=True,
            image_mean=[0.5] * 3, image_std=[0.25] * 3,
        )  # fmt: skip
        processor = LlavaProcessor(
            image_processor=pictures, tokenizer=tokenizer, patch_size=shape.patch, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
        )  # fmt: skip
        return cls(model, processor)

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Preprocess uint8 pictures [H, W, 3] into float32 [I, 3, H, W]."""
        made = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return torch.as_tensor(made, dtype=torch.float32)

    def vision(self, pixel_values: Tensor) -> Tensor:
        """Run tower and projector: [I, 3, H, W] -> [I, n_v, H]."""
        found = self.model.model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
        return torch.stack(list(found))

    def row(self, conversation: Conversation, pictures: list[NDArray[np.uint8]], limit: int | None = None) -> Row:
        """Tokenise one conversation."""
        raise NotImplementedError


ADAPTER = LlavaAdapter
