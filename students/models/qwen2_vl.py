"""Qwen2-VL (tower of its own, Qwen2) through transformers' own classes."""

from __future__ import annotations

from students.models._qwen_vl import QwenVLAdapter


class Qwen2VLAdapter(QwenVLAdapter):
    """One Qwen2-VL with its processor."""

    family = "qwen2_vl"


ADAPTER = Qwen2VLAdapter
