"""Protocols as YAML, and beside them the published rules that they name as ``module.function``: no torch, no lmms-eval.

A prompt rule is ``(doc) -> str``; a parser ``(reply, doc) -> (prediction, named)`` where ``named`` says whether the reply
names a valid answer at all; a score ``(prediction, doc) -> float`` in 0..1; a keep rule ``(doc, image) -> bool``.
"""
