"""SmolVLM (SigLIP tower, pixel-shuffle connector, Llama) through transformers' own classes; images are cut into tiles."""

from __future__ import annotations

from students.models._tiled import TiledAdapter


class SmolVLMAdapter(TiledAdapter):
    """One SmolVLM with its processor."""

    family = "smolvlm"


ADAPTER = SmolVLMAdapter
