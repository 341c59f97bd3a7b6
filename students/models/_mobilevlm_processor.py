"""MobileVLM V2's text and images as its published code reads them: a sentencepiece vocabulary, and CLIP's pixels of a square.

Formats: tokenizer.model of ``mtgv/MobileVLM_V2-1.7B`` (LLaMA's); ``expand2square`` and ``process_images`` of
Meituan-AutoML/MobileVLM, mobilevlm/utils.py; preprocessor_config.json of ``openai/clip-vit-large-patch14-336``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.base import UserError, shim, write_json
from students.data.conversations import IMAGE
from students.models import _conversation_formats as formats
from students.models._mobilevlm_config import MobileVlmConfig, check, pixel_settings

shim()  # before transformers' image classes look for torchvision

from transformers import AddedToken, BatchFeature  # noqa: E402 - after the shim
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend  # noqa: E402

Picture = Image.Image | NDArray[np.uint8]
MODEL = "tokenizer.model"
#: Files of the vocabulary, kept as they are when a student is saved.
_KEPT = (MODEL, "tokenizer_config.json", "special_tokens_map.json")


class MobileVlmTokenizer(SentencePieceBackend):  # type: ignore[misc]
    """LLaMA's sentencepiece vocabulary with a space before every piece of text (``legacy``), and ``<image>`` beyond it."""

    @classmethod
    def read(cls, folder: Path, config: MobileVlmConfig) -> MobileVlmTokenizer:
        """Read a folder's tokenizer.model.

        Raises:
            UserError: naming the file that is missing or damaged, or what does not fit config.json.
        """
        file = folder / MODEL
        if not file.is_file():
            raise UserError(f"{file} is missing: MobileVLM reads text with it; copy it from where the weights come from")
        try:
            import sentencepiece
        except ImportError as error:
            raise UserError(f"{file} needs the package sentencepiece (pip install sentencepiece)") from error
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
        except (RuntimeError, OSError) as error:
            raise UserError(f"{file} is truncated or damaged ({error}); download it again") from error
        if pieces.get_piece_size() > config.vocab_size:
            raise UserError(f"{file} has {pieces.get_piece_size()} tokens, and config.json says {config.vocab_size}")
        for name in ("bos", "eos"):
            mine, other = getattr(pieces, f"{name}_id")(), getattr(config, f"{name}_token_id")
            if mine != other:
                raise UserError(f"{file} has the {name} token {mine}, and {folder / 'config.json'} says {other}")
        image = AddedToken(IMAGE, lstrip=False, rstrip=False, normalized=False, special=True)
        return cls(
            vocab_file=str(file), legacy=True, special_tokens_pattern="bos", padding_side="right",
            bos_token=pieces.id_to_piece(pieces.bos_id()), eos_token=pieces.id_to_piece(pieces.eos_id()),
            unk_token=pieces.id_to_piece(pieces.unk_id()), pad_token=pieces.id_to_piece(config.pad_token_id or 0),
            added_tokens_decoder={config.image_token_id: image}, model_max_length=config.max_position_embeddings,
        )  # fmt: skip

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces, bytes included."""
        return str(self.sp_model.decode(tokens))


class MobileVlmProcessor:
    """Tokenizer and image preprocessing of one checkpoint.

    Attributes:
        chat_template: the name of the conversation format that prompts are rendered in.
        image_token: what stands for an image in text.
        image_tokens_each: how many tokens an image takes.
    """

    chat_template = "v1"
    image_token = IMAGE

    def __init__(self, tokenizer: MobileVlmTokenizer, settings: dict[str, Any], pad: bool, files: dict[str, bytes]) -> None:
        from students.models._mobilevlm_model import VISION_TOKENS

        self.tokenizer = tokenizer
        self.image_processor = CLIPImageProcessorPil(**settings)
        self.image_tokens_each = VISION_TOKENS
        self.pad = pad
        self._settings, self._files = settings, files
        legacy = read_json_bytes(files.get("tokenizer_config.json", b"{}")).get("legacy")
        self.coding = formats.Coding(
            self._encode, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(IMAGE),
            VISION_TOKENS, legacy is not False,
        )  # fmt: skip

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: MobileVlmConfig | None = None, **_: Any) -> MobileVlmProcessor:
        """Read the processor of a checkpoint folder in the published layout.

        Raises:
            UserError: naming the file that is missing, damaged, or does not fit the others.
        """
        folder = Path(folder)
        config = config or MobileVlmConfig.from_pretrained(folder, local_files_only=True)
        check(config, folder)
        tokenizer = MobileVlmTokenizer.read(folder, config)
        files = {name: (folder / name).read_bytes() for name in _KEPT if (folder / name).is_file()}
        settings = pixel_settings(str(config.mm_vision_tower), folder)
        return cls(tokenizer, settings, config.image_aspect_ratio == "pad", files)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's published files as they were read, and the image settings."""
        for name, content in self._files.items():
            (Path(folder) / name).write_bytes(content)
        kind = {"image_processor_type": "CLIPImageProcessor"}
        write_json(Path(folder) / "preprocessor_config.json", {**kind, **self._settings})

    # ---- text --------------------------------------------------------------------------------------------------------------

    def _encode(self, text: str, continues: bool) -> list[int]:
        pieces = self.tokenizer.sp_model
        if not continues:
            return list(pieces.encode(text))
        # a line break is a byte of its own, so no piece spans it
        return list(pieces.encode("\n" + text))[len(pieces.encode("\n")) :]

    def apply_chat_template(
        self, conversation: Sequence[dict[str, Any]], add_generation_prompt: bool = True, tokenize: bool = False
    ) -> str:
        """Render messages as text, start token included, up to where the reply starts.

        Raises:
            UserError: when asked for tokens or for a finished conversation, or for other roles than user and assistant.
        """
        if tokenize or not add_generation_prompt:
            raise UserError("MobileVLM's prompts are rendered as text, up to where the reply starts")
        return formats.prompt(conversation, self.tokenizer.bos_token, self.tokenizer.eos_token)

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Any] | None = None,
        add_special_tokens: bool = True,
        padding_side: str = "left",
        **_: Any,
    ) -> BatchFeature:
        """Make a model's inputs of rendered prompts and their images.

        Args:
            text: R prompts, one mark per image.
            images: pictures in the order of the marks, or one list of them per prompt.
            add_special_tokens: put the start token first; for prompts that were not rendered with it.
            padding_side: "left", as generation needs it, or "right".

        Returns:
            input_ids and attention_mask int64 [R, L], and with images pixel_values float32 [I, 3, H, W].

        Raises:
            UserError: when marks and images differ in number.
        """
        texts = [text] if isinstance(text, str) else list(text)
        shown = [p for each in images or [] for p in (each if isinstance(each, (list, tuple)) else [each])]
        marks = sum(each.count(IMAGE) for each in texts)
        if marks != len(shown):
            raise UserError(f"the prompts have {marks} mark(s) {IMAGE} for {len(shown)} image(s); needed: one each")
        expanded = [each.replace(IMAGE, IMAGE * self.image_tokens_each) for each in texts]
        made: dict[str, Any] = dict(
            self.tokenizer(
                expanded, add_special_tokens=add_special_tokens, padding=True, padding_side=padding_side, return_tensors="pt"
            )
        )
        if shown:
            made["pixel_values"] = self.pixels(shown)
        return BatchFeature({name: made[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in made})

    # ---- images ------------------------------------------------------------------------------------------------------------

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Preprocess pictures into float32 [I, 3, H, W]: padded to a square where the model wants it, then as CLIP does."""
        opened = [p if isinstance(p, Image.Image) else Image.fromarray(p) for p in pictures]
        shown = [p.convert("RGB") for p in opened]
        if self.pad:
            colour = tuple(int(255 * value) for value in self.image_processor.image_mean)
            shown = [squared(p, colour) for p in shown]
        made = self.image_processor(images=shown, return_tensors="pt")["pixel_values"]
        return torch.as_tensor(made, dtype=torch.float32)


def squared(picture: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Centre a picture on a square of its longer side in one colour."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    made = Image.new("RGB", (side, side), colour)
    made.paste(picture, ((side - width) // 2, (side - height) // 2))
    return made


def read_json_bytes(content: bytes) -> dict[str, Any]:
    """Parse the bytes of a JSON object."""
    import json

    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise UserError(f"tokenizer_config.json is damaged ({error}); download it again") from error
