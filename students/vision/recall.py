"""Stored features in an evaluation: what a processor made of images is looked up by content, and computed where it is new."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.base import digest
from students.vision import keys
from students.vision.store import Features, Unfit

if TYPE_CHECKING:
    from students.models._base import Adapter

#: Bytes of features that a worker remembers of images that are not stored.
MOST = 512_000_000


@dataclass
class Memory:
    """Features that one worker computed, by tower and image; the next model with the same tower finds them.

    Attributes:
        key: digest of the key of the tower that they are of.
        by_content: features [n, C] by fingerprint, the longest unused first.
        size: the bytes that they take.
    """

    key: str = ""
    by_content: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict)
    size: int = 0

    def turn_to(self, key: str) -> None:
        """Forget other towers' features."""
        if key != self.key:
            self.key, self.size = key, 0
            self.by_content.clear()

    def get(self, content: bytes) -> Tensor | None:
        """Return what is remembered of an image."""
        found = self.by_content.get(content)
        if found is not None:
            self.by_content.move_to_end(content)
        return found

    def put(self, content: bytes, features: Tensor) -> None:
        """Remember an image, and forget those that were not asked for longest where it becomes too much."""
        self.by_content[content] = features
        self.size += features.nbytes
        while self.size > MOST:
            _, old = self.by_content.popitem(last=False)
            self.size -= old.nbytes


class Recall:
    """Puts features where a processor put pixels; fits ``CheckpointModel.recall``.

    Args:
        adapter: the model that is evaluated.
        folder: stored features; None where nothing is stored.
        memory: what this worker remembers.

    Attributes:
        why: whose features are looked up, in one line.
        counts: distinct images of each batch that were found on disk ("stored"), in memory ("remembered"), or run through the
            tower ("computed").

    Raises:
        UserError: for a model whose tower cannot be run apart, or stored features that are damaged.
    """

    def __init__(self, adapter: Adapter, folder: Path | None, memory: Memory) -> None:
        key = keys.key(adapter, half=False)
        self.adapter, self.memory = adapter, memory
        memory.turn_to(digest(key))
        self.features: Features | None = None
        self.why = "no features are stored"
        if folder is not None:
            try:
                self.features = Features(folder, key)
                self.why = f"features of {len(self.features):,} images, computed once"
            except Unfit as error:
                self.why = str(error)
        self.counts = {"stored": 0, "remembered": 0, "computed": 0}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Replace ``pixel_values`` [I, 3, H, W] on the CPU, where there are any, by features [I, n, C]."""
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return dict(inputs)
        content = [keys.fingerprint(each) for each in pixels]
        known = {each: self._known(each) for each in dict.fromkeys(content)}
        found = {each: features for each, features in known.items() if features is not None}
        new = [each for each in known if each not in found]
        if new:
            given = torch.stack([pixels[content.index(each)] for each in new])
            computed = self.adapter.features(given.to(next(self.adapter.model.parameters()).device)).cpu()
            for each, features in zip(new, computed, strict=True):
                found[each] = features.clone()
                self.memory.put(each, found[each])
        self.counts["computed"] += len(new)
        return {**inputs, "pixel_values": torch.stack([found[each] for each in content])}

    def _known(self, content: bytes) -> Tensor | None:
        stored = None if self.features is None else self.features.of(content)
        if stored is not None:
            self.counts["stored"] += 1
            return stored
        kept = self.memory.get(content)
        self.counts["remembered"] += kept is not None
        return kept


def recall(model: Any, processor: Any, folder: Path | None, memory: Memory) -> tuple[Recall | None, str]:
    """Return what to set as ``CheckpointModel.recall``, and why, or None where the model's tower is not run apart.

    Args:
        model, processor: as transformers' Auto classes load them.
        folder, memory: see :class:`Recall`.
    """
    from students import models

    adapter = models.wrap(model, processor)
    why = f"a {model.config.model_type} is not known" if adapter is None else keys.unsplit(adapter)
    if adapter is None or why is not None:
        return None, str(why)
    made = Recall(adapter, folder, memory)
    return made, made.why
