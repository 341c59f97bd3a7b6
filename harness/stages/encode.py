"""The training data as arrays that are mapped, not read: tokens as the students read them, and decoded pictures; a cache."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import read_json
from harness.caching import Planned
from harness.stages import data

if TYPE_CHECKING:
    from harness.plan import Stage
    from harness.workers import Context
    from students.data.pack import Encoded
    from students.data.samples import TrainingSet

#: Raise when the same configuration would give other files.
STAGE_VERSION = 1

TARGET = "encoded"
PLANS = "harness.stages.encode:planned"
#: An image's tokens where the model's configuration does not say how many they are.
_IMAGE_TOKENS = 4096
_BYTES_PER_TOKEN = 4
#: Of file headers, and per sample and picture of offsets and of names in JSON, beside the names themselves.
_HEADERS, _PER_ROW = 20_000, 100


def run(context: Context) -> None:
    """Write ``encoded/``: see :func:`students.data.encoded.save`. Places: ``base``, whose processor makes the tokens."""
    from harness.stages.student import use_torch
    from students import models
    from students.data import encoded, pack

    use_torch(context)
    samples = data.load_training(context.root)
    made = pack.encode(samples.samples, models.load(context.place("base")).processor)
    encoded.save(context.out(TARGET), samples, made)
    context.progress(1, 1)


def load(root: Path) -> tuple[TrainingSet, Encoded]:
    """Open the training data of the run folder ``root`` and its tokens; both map their large parts.

    Raises:
        UserError: naming a file that cannot be read.
    """
    from students.data import encoded

    samples = data.load_training(root, encoded.load_pictures(root / TARGET))
    return samples, encoded.load(root / TARGET, [sample.id for sample in samples])


def planned(root: Path, stage: Stage) -> Planned:
    """Return what :func:`run` writes at most: a token a byte of text, and every picture decoded."""
    form = "tokens int32, pictures uint8"
    rows, images = root / data.ROWS, root / data.IMAGES
    if not (rows.is_file() and images.is_file()):
        return Planned(form, None)
    base = Path(stage.places["base"])
    config = (root / base) / "config.json"
    if not config.is_file():  # a base that the run makes first
        return Planned(form, None)
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    table: Any = parquet.read_table(rows, columns=["id", "image", "prompt", "answer", "clean_answer"])
    size = {name: compute.sum(compute.binary_length(table[name])).as_py() or 0 for name in table.column_names}
    fixed = _template(root / base) + _image_tokens(read_json(config)) + 1
    tokens = size["prompt"] + size["answer"] + size["clean_answer"] + table.num_rows * (fixed + 2)
    with zipfile.ZipFile(images) as archive:
        pictures = sum(entry.file_size + _PER_ROW + len(entry.filename) for entry in archive.infolist())
    names = size["id"] + size["image"] + table.num_rows * _PER_ROW
    return Planned(form, _HEADERS + _BYTES_PER_TOKEN * tokens + pictures + names)


def _template(folder: Path) -> int:
    """Return how many bytes of a chat template are no code: what it adds to one message, at most."""
    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8") if path.is_file() else str(read_json(folder / "tokenizer_config.json"))
    return len(re.sub(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", "", text, flags=re.DOTALL).encode())


def _image_tokens(config: dict[str, Any]) -> int:
    vision = config.get("vision_config") or {}
    side, patch = vision.get("image_size"), vision.get("patch_size")
    if isinstance(side, int) and isinstance(patch, int):
        return (side // patch) ** 2 + 1
    return _IMAGE_TOKENS
