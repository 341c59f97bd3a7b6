"""Qwen2.5-VL (window-attention tower, Qwen2.5) through transformers' own classes."""

from __future__ import annotations

from students.models._qwen_vl import QwenVLAdapter


class Qwen25VLAdapter(QwenVLAdapter):
    """One Qwen2.5-VL with its processor."""

    family = "qwen2_5_vl"


ADAPTER = Qwen25VLAdapter
