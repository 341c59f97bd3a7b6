"""Idefics3 and SmolVLM: an image becomes tiles of one size, and as many tokens as it has tiles times a constant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from students.data.conversations import Row
from students.models._image_text import ImageTextAdapter


class TiledAdapter(ImageTextAdapter):
    """A model whose ``pixel_values`` are tiles [rows, tiles, 3, H, W] with a mask of what is padding."""

    TOWER, PROJECTOR, LANGUAGE = "vision_model", "connector", "text_model"

    def join(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Join the tiles of all rows [1, tiles, 3, H, W] in their order, padded at the right and bottom to one size.

        The model takes tiles in order, whichever row they are counted to, so that none is filled up with empty ones.
        """
        shown = [row.pixels for row in rows if row.pixels]
        height, width = (max(pixels["pixel_values"].shape[axis] for pixels in shown) for axis in (-2, -1))

        def joined(name: str) -> Tensor:
            parts = []
            for pixels in shown:
                part = pixels[name]
                parts.append(torch.nn.functional.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2])))
            return torch.cat(parts, 1)

        return {name: joined(name) for name in ("pixel_values", "pixel_attention_mask")}
