"""What the harness hands to the distiller: samples as plain records, and the pictures they show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.base import UserError


@dataclass(frozen=True)
class Sample:
    """One question with the reply to learn.

    Attributes:
        id: unique within the training set.
        benchmark: where the question comes from.
        image: key into the training set's images, or None.
        prompt: the text of the question, without any chat template.
        answer: the reply to learn; differs from ``clean_answer`` where label noise was injected.
        clean_answer: the right reply.
        noisy: the label was replaced.
        blind: the teacher does not see this sample's image; what it sees instead, students/teacher_signal decides.
    """

    id: str
    benchmark: str
    image: str | None
    prompt: str
    answer: str
    clean_answer: str
    noisy: bool
    blind: bool


@dataclass(frozen=True)
class TrainingSet:
    """Samples with their images; ``images`` maps a key to uint8 pixels [height, width, 3]."""

    samples: tuple[Sample, ...]
    images: Mapping[str, NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


def from_frame(rows: pd.DataFrame, images: Mapping[str, NDArray[np.uint8]]) -> TrainingSet:
    """Build a training set from a frame with one column per field of :class:`Sample`.

    Raises:
        UserError: naming missing columns, repeated ids or images that are not there.
    """
    names = [field.name for field in fields(Sample)]
    missing = sorted(set(names) - set(rows.columns))
    if missing:
        raise UserError(f"training rows lack column(s) {', '.join(missing)}; needed: {', '.join(names)}")
    repeated = rows["id"][rows["id"].duplicated()]
    if len(repeated):
        raise UserError(f"training rows repeat {len(repeated)} id(s), the first is {repeated.iloc[0]!r}")
    records = rows[names].astype(object).where(rows[names].notna(), None).to_dict("records")
    samples = tuple(Sample(**{str(name): value for name, value in record.items()}) for record in records)
    absent = {s.image for s in samples if s.image is not None} - set(images)
    if absent:
        raise UserError(f"training rows show {len(absent)} image(s) that are not there, the first is {min(absent)!r}")
    return TrainingSet(samples, images)
