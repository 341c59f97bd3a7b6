"""MobileVLM V2 as a transformers model: CLIP tower, LDPv2 projector and Llama under the published names of modules.

Modules are named as the published weights are (``model.layers``, ``model.mm_projector.mlp.mlp.0``,
``model.vision_tower.vision_tower.vision_model``, ``lm_head``), so loading and saving need no translation.

Architecture: MobileVLM V2, arXiv 2402.03766; Meituan-AutoML/MobileVLM, mobilevlm/model/{mobilellama,mobilevlm,
vision_encoder,vision_projector}.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.base import shim
from students.models._mobilevlm_config import MobileVlmConfig, complete
from students.models._mobilevlm_files import Checkpoint

shim()  # before transformers' image classes look for torchvision

from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM, LlamaModel  # noqa: E402 - after the shim
from transformers.modeling_outputs import BaseModelOutputWithPast  # noqa: E402

#: Tokens along one side of an image, whatever the tower's grid.
SIDE = 12
VISION_TOKENS = SIDE * SIDE


class FeatureMlp(nn.Module):
    """Two linear layers from the tower's width to the language model's."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inner, outer), nn.GELU(), nn.Linear(outer, outer))


class PositionConvolution(nn.Module):
    """A depthwise 3 x 3 convolution, whose output is added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width))


class LdpV2(nn.Module):
    """The lightweight downsample projector V2: any square grid of features [I, n, C] to [I, 144, H]."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.mlp = FeatureMlp(inner, outer)
        self.peg = PositionConvolution(outer)

    def forward(self, features: Tensor) -> Tensor:
        """Project, pool to 12 x 12 and add what the neighbours say."""
        made = self.mlp.mlp(features)
        side = math.isqrt(made.shape[1])
        grid = made.transpose(1, 2).reshape(len(made), -1, side, side)
        if side % SIDE == 0:  # the same means, and unlike adaptive pooling repeatable on a GPU
            pooled = nn.functional.avg_pool2d(grid, side // SIDE)
        else:
            pooled = nn.functional.adaptive_avg_pool2d(grid, SIDE)
        return torch.as_tensor(self.peg.peg(pooled) + pooled).flatten(2).transpose(1, 2)


class MobileVlmClip(CLIPVisionModel):  # type: ignore[misc]
    """CLIP's vision model under a name of ours, for which transformers has no renaming of weights."""


class VisionTower(nn.Module):
    """The tower, as deep in modules as its published names are."""

    def __init__(self, config: MobileVlmConfig) -> None:
        super().__init__()
        vision = CLIPVisionConfig(**(config.mm_vision_config or {}))
        vision._attn_implementation = config._attn_implementation
        self.layer = config.mm_vision_select_layer
        self.vision_tower = nn.Module()
        self.vision_tower.vision_model = MobileVlmClip(vision)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the patches' features [I, n, C] after the selected layer; pixels are float32 [I, 3, H, W] or of any type."""
        clip: Any = self.vision_tower.vision_model
        pixels = pixel_values.to(clip.embeddings.patch_embedding.weight.dtype)
        return torch.as_tensor(clip(pixels, output_hidden_states=True).hidden_states[self.layer][:, 1:])


@dataclass
class MobileVlmOutput(BaseModelOutputWithPast):  # type: ignore[misc]
    """What the model without its head returns; ``image_hidden_states`` are the projected images [I, 144, H]."""

    image_hidden_states: Tensor | None = None


class MobileLlamaModel(LlamaModel):  # type: ignore[misc]
    """Llama that reads images, without its head."""

    config_class = MobileVlmConfig

    def __init__(self, config: MobileVlmConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config)
        self.mm_projector = LdpV2(int(config.mm_hidden_size or 0), config.hidden_size)
        self.post_init()

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Run tower and projector: [I, 3, H, W] -> [I, 144, H]; the projector alone where given its features [I, n, C]."""
        return torch.as_tensor(self.mm_projector(pixel_values if pixel_values.ndim == 3 else self.vision_tower(pixel_values)))

    def embed(self, input_ids: Tensor, vision: Tensor | None) -> Tensor:
        """Return what enters the first layer [R, L, H]: text, and images [I, 144, H] in the order of their tokens.

        Raises:
            RuntimeError: when image tokens and images do not agree in number.
        """
        places = input_ids == self.config.image_token_id
        expected = 0 if vision is None else vision.shape[0] * vision.shape[1]
        torch._assert_async(places.sum() == expected, f"image tokens do not fit the {expected} features of the images")
        embeds = self.embed_tokens(input_ids.masked_fill(places, 0))  # image tokens are beyond the table
        if vision is not None:
            embeds = embeds.masked_scatter(places[..., None], vision.to(embeds.dtype))
        return torch.as_tensor(embeds)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> MobileVlmOutput:
        """Run the model; see ``LlamaModel.forward`` for the other arguments.

        Args:
            input_ids: int64 [R, L], 144 image tokens per image.
            pixel_values: [I, 3, H, W], images in row order; None where no row shows one.
            inputs_embeds: [R, L, H] in place of both.
        """
        vision = None
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("needed: input_ids or inputs_embeds")
            vision = None if pixel_values is None else self.image_features(pixel_values)
            inputs_embeds = self.embed(input_ids, vision)
        kwargs["return_dict"] = True
        output = super().forward(inputs_embeds=inputs_embeds, **kwargs)
        return MobileVlmOutput(**output, image_hidden_states=vision)


class MobileLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """MobileVLM V2 with its head, by the name that the published config.json gives its architecture."""

    config_class = MobileVlmConfig

    def __init__(self, config: MobileVlmConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = MobileLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Return logits and cache; see :meth:`MobileLlamaModel.forward` and ``LlamaForCausalLM.forward``."""
        return super().forward(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
            logits_to_keep=logits_to_keep, **kwargs,
        )  # fmt: skip

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint folder in the published layout (.bin or safetensors, sharded or not), pickles without their code.

        The tower's weights are taken from the checkpoint; where it has none, from the tower that ``mm_vision_tower`` names.

        Raises:
            UserError: naming the file, key or weight that is missing, damaged, of another layout or shape, or unsafe.
        """
        folder = Path(pretrained_model_name_or_path)
        given = kwargs.pop("config", None)
        config = given if isinstance(given, MobileVlmConfig) else MobileVlmConfig.from_pretrained(folder, local_files_only=True)
        complete(config, folder)
        with torch.device("meta"):
            expected = {name: tuple(value.shape) for name, value in cls(config).state_dict().items()}
        found = Checkpoint.read(folder, expected, tied=bool(config.tie_word_embeddings))
        told = kwargs.pop("output_loading_info", False)
        kwargs |= {"local_files_only": True, "weights_only": True, "output_loading_info": True}
        model, report = super().from_pretrained(folder, *args, config=config, **kwargs)
        if not found.tower:
            model.model.vision_tower.vision_tower.load_state_dict(found.tower_weights(str(config.mm_vision_tower)))
        report["missing_keys"] = set()
        return (model, report) if told else model
