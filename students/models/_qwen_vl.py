"""Qwen2-VL and Qwen2.5-VL: an image keeps its shape, and takes as many tokens as its grid of patches has merged cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from students.data.conversations import Row
from students.data.pack import Batch
from students.models._collate import Side
from students.models._image_text import ImageTextAdapter


class QwenVLAdapter(ImageTextAdapter):
    """A model with rotary positions in three axes, which it counts itself from the kind of each token."""

    TOWER, PROJECTOR, LANGUAGE = "visual", "visual.merger", "language_model"

    def collate(self, rows: Sequence[Row], indices: Sequence[int], side: Side = "right") -> Batch:
        """Pad rows into one batch; beside the pixels go the kinds of tokens: 1 for an image's, 0 for others."""
        batch = super().collate(rows, indices, side)
        kinds = (batch.input_ids == self.image_token).int()
        return replace(batch, inputs={**batch.inputs, "mm_token_type_ids": kinds})
