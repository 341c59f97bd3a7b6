"""LLaVA-NeXT and LLaVA-OneVision: an image becomes one small copy and as many tiles as its shape asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from students.data.conversations import Row
from students.models._image_text import ImageTextAdapter


class AnyResolutionAdapter(ImageTextAdapter):
    """A model whose ``pixel_values`` are tiles [images, tiles, 3, H, W], filled up to the image that has most."""

    TOWER, PROJECTOR, LANGUAGE = "vision_tower", "multi_modal_projector", "language_model"

    def join(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Join the rows' images, filled up with empty tiles, which the model leaves out again by the images' sizes."""
        shown = [row.pixels for row in rows if row.pixels]
        most = max(pixels["pixel_values"].shape[1] for pixels in shown)
        joined = {name: torch.cat([pixels[name] for pixels in shown]) for name in shown[0] if name != "pixel_values"}
        tiles = [pixels["pixel_values"] for pixels in shown]
        filled = [torch.nn.functional.pad(t, (0, 0, 0, 0, 0, 0, 0, most - t.shape[1])) for t in tiles]
        return {**joined, "pixel_values": torch.cat(filled)}
