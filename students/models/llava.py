"""LLaVA 1.5 (CLIP or SigLIP tower, two-layer projector, Llama or Qwen2) through transformers' own classes."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from students.models._base import TAPS
from students.models._image_text import ImageTextAdapter
from students.shape import LlavaShape

if TYPE_CHECKING:
    from students.data.pack import Batch

__all__ = ["ADAPTER", "TAPS", "LlavaAdapter"]


class LlavaAdapter(ImageTextAdapter):
    """One LLaVA with its processor, seen through what a distiller needs."""

    family = "llava"
    splits = True
    TOWER, PROJECTOR, LANGUAGE = "vision_tower", "multi_modal_projector", "language_model"

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        config = model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        first = hasattr(getattr(self.tower, "embeddings", None), "class_embedding")  # CLIP's; SigLIP has none
        processor.image_tokens_each = side * side + first - (config.vision_feature_select_strategy == "default")
        model.model.get_image_features = MethodType(_image_features, model.model)

    @property
    def vision_tokens(self) -> int:
        """n_v, the number of tokens an image takes."""
        return int(self.processor.image_tokens_each)

    def tower_settings(self) -> dict[str, Any]:
        """Return the tower's configuration, the layer that is read of it, and whether its first token is."""
        config = self.model.config
        chosen = {"layer": config.vision_feature_layer, "tokens": config.vision_feature_select_strategy}
        return {**config.vision_config.to_dict(), **chosen}

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

    def _run(self, batch: Batch) -> Any:
        self.model.model.get_placeholder_mask = MethodType(_places, self.model.model)
        return super()._run(batch)

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Preprocess uint8 pictures [H, W, 3] into float32 [I, 3, H, W]."""
        made = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return torch.as_tensor(made, dtype=torch.float32)


def _image_features(self: Any, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Take features of the tower [I, n, C] where ``LlavaModel.get_image_features`` takes pixels, which it still does too."""
    if pixel_values.ndim != 3:
        return type(self).get_image_features(self, pixel_values, *args, **kwargs)
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(pooler_output=list(self.multi_modal_projector(pixel_values)))


def _places(self: Any, input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
    """Say where image features go, [R, L, 1] bool, as ``LlavaModel.get_placeholder_mask`` does, which waits for the device.

    Raises:
        RuntimeError: when image tokens and features do not agree in number.
    """
    places = input_ids == self.config.image_token_id
    expected = image_features.numel() // inputs_embeds.shape[-1]
    torch._assert_async(places.sum() == expected, f"image tokens do not fit the {expected} features of the images")
    return torch.as_tensor(places).unsqueeze(-1)


ADAPTER = LlavaAdapter
