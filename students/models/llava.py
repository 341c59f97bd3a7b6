"""LLaVA (CLIP tower, two-layer projector, Llama) through transformers' own classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import UserError, shim, unknown
from students.data.pack import Batch
from students.models._attention import first_attention
from students.shape import LlavaShape

TAPS = ("attention", "vision", "vision_logits")

shim()  # before transformers' image classes look for torchvision


class LlavaAdapter:
    """One LLaVA with its processor, seen through what a distiller needs."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        config = model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        processor.image_tokens_each = side * side + (config.vision_feature_select_strategy != "default")
        for parameter in self.tower.parameters():
            parameter.requires_grad_(False)

    @property
    def tower(self) -> Any:
        """The vision tower, frozen."""
        return self.model.model.vision_tower

    @property
    def projector(self) -> Any:
        """The projector from vision features to the language model's width."""
        return self.model.model.multi_modal_projector

    @property
    def hidden_size(self) -> int:
        """Width of the language model, in channels."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def vision_tokens(self) -> int:
        """n_v, the number of tokens an image takes."""
        return int(self.processor.image_tokens_each)

    @property
    def vocabulary_size(self) -> int:
        """V, the number of logits."""
        return int(self.model.config.text_config.vocab_size)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> LlavaAdapter:
        """Load a checkpoint folder, in float32 on the CPU or as saved elsewhere.

        Raises:
            UserError: naming the folder when weights, configuration or processor are missing or damaged.
        """
        from safetensors import SafetensorError
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        try:
            model, report = LlavaForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
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

    def hidden(self, batch: Batch) -> Tensor:
        """Run the model without its head on packed rows; last hidden states [R, L, H]."""
        return torch.as_tensor(self._run(batch).last_hidden_state)

    def observe(self, batch: Batch, wanted: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the model once, keeping the features that are asked for beside the last hidden states.

        Args:
            batch: packed rows.
            wanted: names of taps; nothing is computed for those that are not named.

        Returns:
            Exactly the states of :meth:`hidden` [R, L, H], and with I images in the batch, n_v vision tokens an image and V
            logits: "vision" [I, n_v, H] (the projector's output), "vision_logits" [I, n_v, V] (the head at the vision
            tokens, gathered before it), "attention" [B, Q, n_v, heads] and "attention_mask" [B, Q] (see :meth:`attention`).
            All carry gradient where the model's parameters ask for it.

        Raises:
            UserError: (a ``KeyError`` too) for an unknown tap.
        """
        self._known(wanted)
        output = self._run(batch)
        hidden = torch.as_tensor(output.last_hidden_state)
        if batch.pixel_values is None:  # no image: slices without elements, so that they are still part of the graph
            vision = hidden[:0, :1].expand(0, self.vision_tokens, -1)
        else:
            vision = torch.as_tensor(output.image_hidden_states).reshape(len(batch.pixel_values), self.vision_tokens, -1)
        taps = {"vision": vision} if "vision" in wanted else {}
        if "vision_logits" in wanted:
            taps["vision_logits"] = self._vision_logits(hidden, batch)
        if "attention" in wanted:
            taps["attention"], taps["attention_mask"] = self.attention(batch, vision)
        return hidden, taps

    def vision(self, pixel_values: Tensor) -> Tensor:
        """Run tower and projector: [I, 3, H, W] -> [I, n_v, H]."""
        found = self.model.model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
        return torch.stack(list(found))

    def attention(self, batch: Batch, vision: Tensor) -> tuple[Tensor, Tensor]:
        """Recompute the first decoder layer's attention from each sample's own text to its image.

        Only this one map is made, so the model itself keeps its fast attention (METHOD 2.3, Align-KD).

        Args:
            batch: packed rows.
            vision: the images' projected tokens [I, n_v, H].

        Returns:
            Probabilities [B, Q, n_v, heads], at least float32, zero for samples without an image (a query's other
            probabilities go to text, so they sum to less than one); and [B, Q] bool, False beyond a sample's last token.
        """
        language, ids = self.model.model.language_model, batch.input_ids
        embeds = self.model.get_input_embeddings()(ids)
        if len(vision):
            places = (ids == self.model.config.image_token_id)[..., None]
            embeds = embeds.masked_scatter(places, vision.to(embeds.dtype))
        return first_attention(language, embeds, batch, self._columns(batch))

    def tap_width(self, name: str) -> int:
        """Size of a tap's last axis: channels for "vision", V for "vision_logits", heads for "attention".

        Raises:
            UserError: (a ``KeyError`` too) for an unknown tap.
        """
        self._known((name,))
        heads = int(self.model.config.text_config.num_attention_heads)
        return {"vision": self.hidden_size, "vision_logits": self.vocabulary_size, "attention": heads}[name]

    @staticmethod
    def _known(wanted: Collection[str]) -> None:
        for name in sorted(wanted):
            if name not in TAPS:
                raise unknown("tap", name, TAPS)

    def _columns(self, batch: Batch) -> Tensor:
        """Columns [R, n_v] of the vision tokens; a row without an image gets columns of no meaning. Asks nothing of the GPU."""
        places = batch.input_ids == self.model.config.image_token_id
        columns = places.byte().argsort(dim=1, descending=True, stable=True)[:, : self.vision_tokens]
        return torch.nn.functional.pad(columns, (0, self.vision_tokens - columns.shape[1]))  # a short text-only batch

    def _vision_logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Apply the head at the vision tokens alone: [I, n_v, V], images in row order."""
        images = 0 if batch.pixel_values is None else len(batch.pixel_values)
        has = (batch.input_ids == self.model.config.image_token_id).any(1)
        rows = has.byte().argsort(descending=True, stable=True)[:images]
        if not images:
            return self.head(hidden[:0, :1].expand(0, self.vision_tokens, -1))
        return self.head(hidden[rows[:, None], self._columns(batch)[rows]])

    def _run(self, batch: Batch) -> Any:
        return self.model.model(
            input_ids=batch.input_ids, pixel_values=batch.pixel_values, attention_mask=batch.attention_mask,
            position_ids=batch.position_ids, use_cache=False,
        )  # fmt: skip

    def supervised(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Gather the states [N, H] that predict the supervised tokens, before the head sees anything."""
        return hidden[batch.row, batch.column]

    def prompt_state(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Gather the state [B, H] at each sample's last prompt position."""
        return hidden[batch.prompt_row, batch.prompt_column]

    def head(self, states: Tensor) -> Tensor:
        """Project states [N, H] to logits [N, V]."""
        return torch.as_tensor(self.model.lm_head(states))

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return language model and projector parameters by name; the vision tower is frozen."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def save(self, folder: str | Path) -> None:
        """Write a Hugging Face folder that ``from_pretrained`` loads with no code of ours."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


ADAPTER = LlavaAdapter
