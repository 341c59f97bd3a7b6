"""Idefics3 (SigLIP tower, pixel-shuffle connector, Llama) through transformers' own classes; SmolVLM's older relative."""

from __future__ import annotations

from students.models._tiled import TiledAdapter


class Idefics3Adapter(TiledAdapter):
    """One Idefics3 (or a first SmolVLM, published under its name) with its processor."""

    family = "idefics3"


ADAPTER = Idefics3Adapter
