"""What a teacher's signal was made from: by these digests one that is stale is known, and never used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.base import UserError, digest, digest_file
from students.blind import Blind
from students.data.mapped import REMAKE

if TYPE_CHECKING:
    from students.data.conversations import Corpus
    from students.data.samples import TrainingSet

_TEMPLATE = (
    "chat_template.jinja", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


def data_digest(data: TrainingSet) -> str:
    """SHA-256 (hex) over every field of every sample, in order, and the pixels of the images they show."""
    hashed = hashlib.sha256()
    for key in sorted({s.image for s in data if s.image is not None}):
        pixels = np.ascontiguousarray(data.images[key])
        hashed.update(f"{key}|{pixels.shape}|".encode())
        hashed.update(pixels.tobytes())
    samples = [[s.id, s.image, s.prompt, s.answer, s.clean_answer, bool(s.noisy), bool(s.blind)] for s in data]
    return digest([samples, hashed.hexdigest()])


def teacher_key(teacher: Path) -> dict[str, str]:
    """Digests of a teacher's weights, template and tokenizer, and preprocessing."""
    from students.models._load import weights as files_of

    def files(*names: str) -> str:
        return digest([[name, digest_file(teacher / name)] for name in names if (teacher / name).is_file()])

    weights = sorted(path.name for path in files_of(teacher))
    return {
        "teacher": files("config.json", *weights),
        "template": files(*_TEMPLATE),
        "preprocessing": files("preprocessor_config.json", "processor_config.json"),
    }


def signal_key(teacher: Path, data: TrainingSet, blind: Blind | None = None, dtype: str = "float32") -> dict[str, str]:
    """What a cached signal depends on: teacher weights, data, template and tokenizer, preprocessing, blind answers, dtype."""
    own = teacher_key(teacher)
    return {
        "teacher": own["teacher"],
        "data": data_digest(data),
        "template": own["template"],
        "preprocessing": own["preprocessing"],
        "blind_teacher": str(blind or Blind()),
        "dtype": dtype,
    }


def stream_key(
    teacher: Path, corpus: Corpus, template: str | None = None, limit: int | None = None, dtype: str = "float32"
) -> dict[str, str]:
    """The same of a corpus, whose rows were read through a conversation format and cut to a limit of tokens."""
    found = {**teacher_key(teacher), "data": corpus.digest, "dtype": dtype}
    return {**found, "format": template or "the processor's own", "limit": "none" if limit is None else str(limit)}


def refuse_stale(what: str, folder: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuse what was made from something else.

    Raises:
        UserError: naming what has changed.
    """
    stale = [part for part in expected if found.get(part) != expected[part]]
    if stale:
        raise UserError(f"{what} in {folder} is stale: it was made from another {' and '.join(stale)}. {REMAKE}")
