"""Models of published shapes with random weights, made-up rows for them, and the floating-point operations of a step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from harness.estimates import TOKENS_PER_WORD
from students.data.conversations import Conversation, Row
from students.models._mobilevlm_config import CLIP_L, MobileVlmConfig, complete
from students.models._mobilevlm_model import VISION_TOKENS, MobileLlamaForCausalLM
from students.models.mobilevlm import MobileVlmAdapter

#: Mean words of ScienceQA's texts (Lu et al. 2022, arXiv 2209.09513, Table 2). A third of the rows is answered by the letter
#: alone, a third by the letter and the solution, and a third by letter, lecture and solution.
WORDS = {"solution": 47.66, "lecture": 125.06}
LETTER = 2  # the letter and the token that ends a reply
ANSWERS = (
    LETTER,
    LETTER + round(TOKENS_PER_WORD * WORDS["solution"]),
    LETTER + round(TOKENS_PER_WORD * (WORDS["solution"] + WORDS["lecture"])),
)
#: Tokens before a row's image.
BEFORE = 35


def answer_tokens(number: int, length: int) -> int:
    """Return how many tokens of row ``number`` are supervised; a short row holds no more than fit behind its image."""
    return min(ANSWERS[number % len(ANSWERS)], length - BEFORE - VISION_TOKENS - 1)


def mean_answer(length: int) -> float:
    """Return the mean supervised tokens of a row."""
    return statistics.mean(answer_tokens(number, length) for number in range(len(ANSWERS)))


@dataclass(frozen=True)
class Size:
    """A language model's published shape, and its vision tower's."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    vocabulary: int
    tower_hidden: int = 1024
    tower_layers: int = 24
    tower_intermediate: int = 4096
    image: int = 336
    patch: int = 14

    def config(self) -> MobileVlmConfig:
        """Return MobileVLM V2's configuration of this size."""
        tower = {
            "hidden_size": self.tower_hidden, "intermediate_size": self.tower_intermediate,
            "num_hidden_layers": self.tower_layers, "num_attention_heads": max(1, self.tower_hidden // 64),
            "image_size": self.image, "patch_size": self.patch, "projection_dim": 768, "hidden_act": "quick_gelu",
        }  # fmt: skip
        made = MobileVlmConfig(
            hidden_size=self.hidden, num_hidden_layers=self.layers, intermediate_size=self.intermediate,
            num_attention_heads=self.heads, num_key_value_heads=self.heads, vocab_size=self.vocabulary,
            max_position_embeddings=4096, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            tie_word_embeddings=False, mm_vision_tower=CLIP_L if self.image == 336 else "tiny", vision_tower_type="clip",
            mm_projector_type="ldpnetv2", mm_hidden_size=self.tower_hidden, mm_vision_select_layer=-2,
            mm_vision_select_feature="patch", image_aspect_ratio="pad", mm_vision_config=tower, use_mm_proj=True,
        )  # fmt: skip
        return complete(made, Path("(random weights)"))


TEACHER = Size(4096, 32, 11008, 32, 32000)
STUDENT = Size(2048, 24, 5504, 16, 32000)
_TOWER = {"tower_hidden": 64, "tower_layers": 2, "tower_intermediate": 128, "image": 24, "patch": 2}
TINY_TEACHER = Size(64, 2, 128, 2, 320, **_TOWER)
TINY_STUDENT = Size(32, 2, 64, 2, 320, **_TOWER)


class Random(MobileVlmAdapter):
    """A model of random weights, made on the device, that reads made-up rows.

    Args:
        size: of the model.
        length: tokens of every row, those of the image included.
        device, dtype: of the weights.
    """

    def __init__(self, size: Size, length: int, device: str, dtype: torch.dtype) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = MobileLlamaForCausalLM(size.config())
        finally:
            torch.set_default_dtype(before)
        self.size, self.length = size, length
        super().__init__(model.eval(), None)

    def tokens(self) -> tuple[str, ...]:
        """Return names for the vocabulary."""
        return tuple(f"token {number}" for number in range(self.size.vocabulary))

    def row(
        self,
        conversation: Conversation,
        pictures: Sequence[NDArray[np.uint8] | torch.Tensor],  # noqa: ARG002 - the base class's signature
        limit: int | None = None,  # noqa: ARG002
    ) -> Row:
        """Return a row of random tokens, the same for every model, with an answer of one of the lengths in the table."""
        number = int(conversation.id.rpartition(" ")[2])
        random = np.random.default_rng(number)
        ids = random.integers(3, self.size.vocabulary, self.length)
        ids[BEFORE : BEFORE + VISION_TOKENS] = self.image_token
        answer = answer_tokens(number, self.length)
        supervised = np.zeros(self.length, np.bool_)
        supervised[-answer:] = True
        side = self.size.image
        pixels = torch.from_numpy(random.standard_normal((1, 3, side, side), np.float32))
        return Row(ids, supervised, {"pixel_values": pixels}, 1, 0, self.length - answer)

    def _pad(self) -> int:
        return 0


def flops(student: Size, teacher: Size | None, rows: int, length: int, supervised: float, attention: bool = True) -> float:
    """Return the floating-point operations of matrix products that one step asks for, two per multiply-add.

    Language model, a token: projections 8 h^2 + 6 h i a layer, causal attention 2 L h a layer; head 2 h V a supervised token;
    projector 2 (c h + h^2) a patch. Tower, a patch: 8 c^2 + 4 c j a layer, attention 4 n c, and none of its last layer, which
    nothing reads. Forward once; where weights learn, backward twice that. The tower is frozen in both models.

    Args:
        student: its size.
        teacher: the size of one that runs beside it, or None.
        rows: of a step.
        length: tokens of a row.
        supervised: mean supervised tokens of a row.
        attention: count its products of queries, keys and values.
    """

    def language(size: Size) -> float:
        token = 8 * size.hidden**2 + 6 * size.hidden * size.intermediate + attention * 2 * length * size.hidden
        patch = 2 * (size.tower_hidden * size.hidden + size.hidden**2)
        head = supervised * 2 * size.hidden * size.vocabulary
        return length * size.layers * token + patches(size) * patch + head

    def tower(size: Size) -> float:
        width, tokens = size.tower_hidden, patches(size) + 1
        token = 8 * width**2 + 4 * width * size.tower_intermediate + attention * 4 * tokens * width
        return tokens * (size.tower_layers - 1) * token

    def patches(size: Size) -> int:
        return (size.image // size.patch) ** 2

    row = 3 * language(student) + tower(student)
    if teacher is not None:
        row += language(teacher) + tower(teacher)
    return row * rows
