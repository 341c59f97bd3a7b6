"""LLaVA-NeXT (1.6) through transformers' own classes; images are cut into tiles that fit their shape."""

from __future__ import annotations

from students.models._anyres import AnyResolutionAdapter


class LlavaNextAdapter(AnyResolutionAdapter):
    """One LLaVA-NeXT with its processor."""

    family = "llava_next"


ADAPTER = LlavaNextAdapter
