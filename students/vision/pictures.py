"""What a training puts where pixels go in: stored features where they are this model's, else the pixels themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from students.vision import keys
from students.vision.store import Features, Unfit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from students.data.conversations import Conversation, Corpus, Picture
    from students.data.samples import TrainingSet
    from students.models._base import Adapter


#: A key that no image can have: the others are hexadecimal.
MEAN_IMAGE = "(mean image)"


@dataclass(frozen=True)
class Opened:
    """Features for one model, or why it has none.

    Attributes:
        features: by image; None where the model runs its own tower.
        why: the reason then, in one line; else how many images there are.
    """

    features: Features | None
    why: str


def opened(folder: Path | None, adapter: Adapter, half: bool) -> Opened:
    """Open stored features for a model.

    Args:
        folder: what :func:`students.vision.store.write` made; None where nothing is stored.
        adapter: the model as it will run.
        half: whether it runs under autocast to bfloat16.

    Raises:
        UserError: for a folder that is damaged.
    """
    if folder is None:
        return Opened(None, "no features are stored")
    why = keys.unsplit(adapter)
    if why is not None:
        return Opened(None, why)
    try:
        features = Features(folder, keys.key(adapter, half))
    except Unfit as error:
        return Opened(None, str(error))
    return Opened(features, f"features of {len(features):,} images, computed once")


def pixel_table(adapter: Adapter, data: TrainingSet) -> dict[str, Tensor]:
    """Preprocess every image that a sample shows, once: {key: float32 [3, H, W]}."""
    keys_shown = shown_by(data)
    table: dict[str, Tensor] = {}
    for start in range(0, len(keys_shown), 256):
        part = keys_shown[start : start + 256]
        table.update(zip(part, adapter.pixels([data.images[key] for key in part]), strict=True))
    return table


def shown_by(data: TrainingSet) -> list[str]:
    """Return the images that samples show, sorted."""
    return sorted({s.image for s in data if s.image is not None})


def wanted(data: TrainingSet) -> list[str]:
    """Return the images that any model is shown: those of the samples, and their mean where a teacher is blind to some."""
    blind = any(s.blind and s.image is not None for s in data)
    return [*shown_by(data), *([MEAN_IMAGE] if blind else [])]


def mean_image(pixels: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of preprocessed images [3, H, W]."""
    return torch.as_tensor(sum(pixels.values()) / len(pixels))


def table(adapter: Adapter, data: TrainingSet, folder: Path | None, half: bool) -> tuple[Mapping[str, Tensor], str]:
    """Return what goes in for every image that a sample shows, and why: features [n, C], or else pixels [3, H, W].

    Args:
        adapter, folder, half: see :func:`opened`.
        data: the samples.

    Raises:
        UserError: for features that are damaged, or lack images that samples show.
    """
    found = opened(folder, adapter, half)
    if found.features is None:
        return pixel_table(adapter, data), found.why
    lost = [key for key in wanted(data) if key not in found.features]
    if lost:
        return pixel_table(adapter, data), f"features of {len(lost)} of its images are not stored, the first is {lost[0]}"
    return found.features, found.why


class Seen:
    """A corpus whose images are features; implements :class:`students.data.conversations.Corpus`.

    Args:
        corpus: the rows.
        features: of all images that they show.
    """

    def __init__(self, corpus: Corpus, features: Features) -> None:
        self.corpus, self.features = corpus, features
        self.name, self.digest = corpus.name, corpus.digest
        self.lengths: NDArray[np.int32] = corpus.lengths
        self.shows: NDArray[np.int16] = corpus.shows

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> Conversation:
        return self.corpus[index]

    def picture(self, key: str) -> Picture:
        """Read one image's features [n, C]."""
        return self.features[key]


def corpus(rows: Corpus, adapter: Adapter, folder: Path | None, half: bool) -> tuple[Corpus, str]:
    """Return a corpus as a model reads it, with features for images or as it is, and why.

    Args:
        rows: the corpus.
        adapter, folder, half: see :func:`opened`.

    Raises:
        RuntimeError: when the model's rows would be others with features than with images (a processor that writes another
            text round an image than its fixed number of image tokens).
    """
    found = opened(folder, adapter, half)
    if found.features is None:
        return rows, found.why
    seen = Seen(rows, found.features)
    _same_row(rows, seen, adapter)
    return seen, found.why


def _same_row(rows: Corpus, seen: Seen, adapter: Adapter) -> None:
    """Read the first row with an image both ways."""
    first = np.flatnonzero(np.asarray(rows.shows) > 0)[:1]
    for index in first.tolist():
        conversation = rows[index]
        one, other = (adapter.row(conversation, read(each, conversation.images)) for each in (rows, seen))
        if not np.array_equal(one.ids, other.ids) or not np.array_equal(one.supervised, other.supervised):
            raise RuntimeError(
                f"row {conversation.id!r} has {len(one.ids)} tokens as the processor of this {adapter.family} writes it, and"
                f" {len(other.ids)} others with stored features"
            )


def read(rows: Corpus, images: Sequence[str]) -> list[Picture]:
    """Read a row's images, as the corpus has them."""
    return [rows.picture(key) for key in images]
