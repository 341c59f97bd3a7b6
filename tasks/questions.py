"""A benchmark's questions as plain data: the official columns, the image, and the unit that statistics resample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        used = {q.image for q in questions}
        return replace(self, questions=questions, images={k: v for k, v in self.images.items() if k in used})


def image_key(pixels: Pixels) -> str:
    """Return the first 16 hex digits of the SHA-256 over shape and pixels: the image's name in every file."""
    header = ",".join(str(n) for n in pixels.shape).encode()
    return hashlib.sha256(header + b":" + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]
