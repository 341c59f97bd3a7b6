"""LLaVA-OneVision (SigLIP tower, two-layer projector, Qwen2) through transformers' own classes.

The published LLaVA-Qwen models of transformers' own format are of this type, or of type llava with a Qwen2 inside.
"""

from __future__ import annotations

from students.models._anyres import AnyResolutionAdapter


class LlavaOnevisionAdapter(AnyResolutionAdapter):
    """One LLaVA-OneVision with its processor."""

    family = "llava_onevision"


ADAPTER = LlavaOnevisionAdapter
