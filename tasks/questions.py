"""A benchmark's questions as plain data: the official columns, the image, and the unit that statistics resample."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.base import UserError

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: unique within its benchmark and split, a string.
        doc: the official data set's columns, without ``image``.
        image: key into :attr:`QuestionSet.images`, or None for a question without an image.
        answer: the reply that a model is trained to give.
        cluster: the unit that intervals resample (image, question group, pair): questions of one cluster are not independent.
        group: the part of the benchmark it is reported under (POPE split, MME category, ...).
        wrong: plausible wrong replies, from which label noise is drawn; empty where a split carries none.
    """

    id: str
    doc: Mapping[str, Any]
    image: str | None
    answer: str
    cluster: str
    group: str
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    """Questions with the images they show; ``images`` maps a key to uint8 pixels [height, width, 3]."""

    questions: tuple[Question, ...]
    images: Mapping[str, Pixels]
    digest: str

    def limited(self, clusters: int) -> QuestionSet:
        """Keep the first ``clusters`` whole clusters, by their first question; the digest stays, as it names the source."""
        kept = set(list(dict.fromkeys(q.cluster for q in self.questions))[:clusters])
        questions = tuple(q for q in self.questions if q.cluster in kept)
        used = [q.image for q in questions if q.image is not None]
        return replace(self, questions=questions, images=subset(self.images, used))


class Pictures(Mapping[str, Pixels]):
    """Images that are decoded when they are asked for: full benchmarks do not fit in memory as pixels.

    Maps a key (the first 16 hex digits of the SHA-256 of the encoded bytes) to uint8 pixels [height, width, 3].
    """

    def __init__(self, sources: Mapping[str, Path | bytes] | None = None) -> None:
        """Take encoded images by key: a file's path, or the bytes themselves."""
        self._sources: dict[str, Path | bytes] = dict(sources or {})

    def add(self, source: Path | bytes) -> str:
        """Add an encoded image and return its key."""
        key = hashlib.sha256(source.read_bytes() if isinstance(source, Path) else source).hexdigest()[:16]
        self._sources.setdefault(key, source)
        return key

    def only(self, keys: Iterable[str]) -> Pictures:
        """Return those images alone, in that order, undecoded."""
        return Pictures({key: self._sources[key] for key in dict.fromkeys(keys)})

    def __getitem__(self, key: str) -> Pixels:
        source = self._sources[key]
        name = str(source) if isinstance(source, Path) else f"image {key}"
        try:
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
                return np.asarray(picture.convert("RGB"), dtype=np.uint8)
        except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for some broken PNGs
            raise UserError(f"{name} is truncated or damaged ({error})") from error

    def __contains__(self, key: object) -> bool:
        return key in self._sources  # the inherited method would decode

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def subset(images: Mapping[str, Pixels], keys: Iterable[str]) -> Mapping[str, Pixels]:
    """Return those of ``images`` alone."""
    if isinstance(images, Pictures):
        return images.only(keys)
    wanted = set(keys)
    return {key: value for key, value in images.items() if key in wanted}


def image_key(pixels: Pixels) -> str:
    """Return the first 16 hex digits of the SHA-256 over shape and pixels: the image's name in every file."""
    header = ",".join(str(n) for n in pixels.shape).encode()
    return hashlib.sha256(header + b":" + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]
