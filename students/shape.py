"""The size of a small LLaVA. No torch here, so that presets can be checked without it."""

from __future__ import annotations

from harness.base import Strict


class LlavaShape(Strict):
    """Widths in channels, images and patches in pixels.

    Attributes:
        hidden, layers, heads, intermediate: of the language model.
        vision_hidden, vision_layers, vision_heads: of the CLIP tower.
        image, patch: sides; a picture becomes (image / patch) squared tokens.
        initializer_range: spread of the initial weights; transformers' 0.02 leaves models this small at the prior.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vision_hidden: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    image: int = 60
    patch: int = 20
    initializer_range: float = 0.06
