"""MobileVLM V2 (CLIP tower, LDPv2 projector, MobileLLaMA or Vicuna) from the checkpoints that are published, as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.base import UserError, unknown
from students.data.conversations import IMAGE, Conversation, Picture, Whole
from students.data.pack import Batch
from students.models._attention import first_attention
from students.models._base import Adapter
from students.models._conversation_formats import FORMATS, tokens
from students.models._load import explained
from students.models._mobilevlm_assemble import assemble
from students.models._mobilevlm_config import MobileVlmConfig, complete
from students.models._mobilevlm_model import VISION_TOKENS, MobileLlamaForCausalLM
from students.models._mobilevlm_processor import MobileVlmProcessor

__all__ = ["ADAPTER", "MobileVlmAdapter", "assemble", "register"]


class _Language(nn.Module):
    """The parts of the model that are Llama's, so that nobody takes tower or projector for it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.norm, self.rotary_emb = (
            model.embed_tokens, model.layers, model.norm, model.rotary_emb,
        )  # fmt: skip


class MobileVlmAdapter(Adapter):
    """One MobileVLM V2 with its processor.

    Attributes:
        template: the conversation format of rows: "v1", or "plain" for captions.
    """

    family = "mobilevlm"
    splits = True

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self._template = "v1"

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> MobileVlmAdapter:
        """Load a checkpoint folder in the published layout.

        Raises:
            UserError: naming what is missing, damaged, unsafe or of another layout.
        """
        folder = Path(folder)
        with explained(folder):
            config = complete(MobileVlmConfig.from_pretrained(folder, local_files_only=True), folder)
            processor = MobileVlmProcessor.from_pretrained(folder, config)
            model: Any = MobileLlamaForCausalLM.from_pretrained(folder, config=config, dtype=dtype)
        return cls(model.to(device).eval(), processor)

    # ---- parts -------------------------------------------------------------------------------------------------------------

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.model.vision_tower

    @property
    def projector(self) -> Any:
        """The projector from vision features to the language model's width."""
        return self.model.model.mm_projector

    @property
    def language(self) -> Any:
        """Llama's modules: ``embed_tokens``, ``layers``, ``norm`` and ``rotary_emb``."""
        return _Language(self.model.model)

    @property
    def text_config(self) -> Any:
        """Configuration of the language model, which is the model's own."""
        return self.model.config

    @property
    def vision_tokens(self) -> int:
        """n_v, the number of tokens an image takes."""
        return VISION_TOKENS

    def tower_settings(self) -> dict[str, Any]:
        """Return the tower's configuration, and the layer that is read of it."""
        tower = self.tower
        return {**tower.vision_tower.vision_model.config.to_dict(), "layer": tower.layer}

    @property
    def template(self) -> str:
        """The conversation format of rows."""
        return self._template

    @template.setter
    def template(self, name: str) -> None:
        if name not in FORMATS:
            raise unknown("template", name, FORMATS)
        self._template = name

    def tokens(self) -> tuple[str, ...]:
        """Return the vocabulary in id order, without the mark of images, which no head predicts."""
        pieces = self.processor.tokenizer.sp_model
        return tuple(pieces.id_to_piece(list(range(pieces.get_piece_size()))))

    # ---- data --------------------------------------------------------------------------------------------------------------

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Preprocess uint8 pictures [H, W, 3] into float32 [I, 3, H, W]."""
        return torch.as_tensor(self.processor.pixels(images))

    def read(self, conversation: Conversation, pictures: Sequence[Picture] | None) -> tuple[Whole, dict[str, Tensor] | None]:
        """Tokenise one conversation whole, in the format :attr:`template`; see :meth:`students.models._rows.RowReader.read`.

        Raises:
            UserError: for marks that do not fit the images, a reply that is empty or shows an image, or a conversation that
                the format does not have.
        """
        name, count = conversation.id, len(conversation.images)
        if pictures is not None and len(pictures) != count:
            raise UserError(f"row {name!r} names {count} image(s) and comes with {len(pictures)}")
        marks = sum(turn.user.count(IMAGE) for turn in conversation.turns)
        if marks != count or any(IMAGE in turn.assistant for turn in conversation.turns):
            raise UserError(f"row {name!r} has {count} image(s) and {marks} mark(s) {IMAGE} in its questions; needed: one each")
        for number, turn in enumerate(conversation.turns, start=1):
            if not turn.assistant:
                raise UserError(f"row {name!r} has an empty reply in turn {number}; there is nothing to learn of it")
        ids, supervised = tokens(name, FORMATS[self.template](conversation), self.processor.coding)
        return Whole(ids, supervised, np.flatnonzero(ids == self.image_token)[::VISION_TOKENS]), None

    def reading(self) -> dict[str, Any]:
        """Return what shapes a row's tokens: vocabulary, format and marks."""
        coding = self.processor.coding
        marks = [coding.bos, coding.eos, coding.image, coding.image_tokens, coding.legacy]
        pieces = hashlib.sha256(self.processor.tokenizer.sp_model.serialized_model_proto()).hexdigest()
        return {"vocabulary": pieces, "format": self.template, "marks": marks}

    def images(self, whole: Whole, end: int, pictures: Sequence[Picture], name: str) -> dict[str, Tensor]:  # noqa: ARG002
        """Preprocess a row's images; see :meth:`students.models._rows.RowReader.images`."""
        return {"pixel_values": self.inputs(pictures)}

    # ---- forward passes ----------------------------------------------------------------------------------------------------

    def vision(self, pixel_values: Tensor) -> Tensor:
        """Run tower and projector: [I, 3, H, W] -> [I, 144, H]."""
        return torch.as_tensor(self.model.model.image_features(pixel_values))

    def attention(self, batch: Batch, vision: Tensor) -> tuple[Tensor, Tensor]:
        """Recompute the first decoder layer's attention; see :meth:`students.models._base.Adapter.attention`."""
        embeds = self.model.model.embed(batch.input_ids, vision if len(vision) else None)
        return first_attention(self.language, embeds, batch, self._columns(batch))


def register() -> None:
    """Make checkpoints of this family loadable by transformers' Auto classes in this process."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    AutoConfig.register(MobileVlmConfig.model_type, MobileVlmConfig, exist_ok=True)
    AutoModelForImageTextToText.register(MobileVlmConfig, MobileLlamaForCausalLM, exist_ok=True)
    AutoProcessor.register(MobileVlmConfig, MobileVlmProcessor, exist_ok=True)


ADAPTER = MobileVlmAdapter
