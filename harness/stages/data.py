"""The training data as plain files, so that training needs no lmms-eval; and the evaluation questions for the report."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UserError, digest, digest_file, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.workers import Context
    from students.data.samples import TrainingSet
    from tasks import Protocol, QuestionSet

#: Raise when the same configuration would give other files.
STAGE_VERSION = 1

ROWS = "data/train.parquet"
IMAGES = "data/images.npz"


def training(context: Context) -> None:
    """Write ``data/train.parquet`` (one row per sample) and ``data/images.npz`` (uint8 [H, W, 3] by image key)."""
    import numpy as np

    import tasks
    from tasks.training import training_rows

    config = context.config["data"]
    protocols = [tasks.protocol(facts["name"]) for facts in context.config["protocols"]]
    options = dict(config["options"])
    if config["images"] is not None:
        options["images"] = config["images"]
    made = training_rows(
        protocols,
        split=config["split"],
        label_noise=config["label_noise"],
        blindness=config["blindness"],
        complementary=config["complementary"],
        blind_benchmarks=config["blind_benchmarks"],
        seed=config["seed"],
        **options,
    )
    folder = context.out("data")
    folder.mkdir(parents=True)
    made.rows.to_parquet(folder / Path(ROWS).name, index=False)
    arrays: dict[str, Any] = {key: made.images[key] for key in sorted(made.images)}
    np.savez_compressed(folder / Path(IMAGES).name, **arrays)


def load_training(root: Path, images: Mapping[str, NDArray[np.uint8]] | None = None) -> TrainingSet:
    """Read what :func:`training` wrote.

    Args:
        root: the run folder.
        images: its pictures, where they were decoded before (harness/stages/encode.py); None to decode them.

    Raises:
        UserError: naming a file that cannot be read.
    """
    import zipfile

    import numpy as np
    import pandas as pd

    from students.data import samples

    path = root / ROWS
    try:
        rows = pd.read_parquet(path)
        path = root / IMAGES
        if images is None:
            with np.load(path) as archive:
                images = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}). Delete it and run the same command again") from error
    return samples.from_frame(rows, images)


def training_facts(protocol: Protocol) -> dict[str, Any]:
    """Return what of a protocol shapes its training rows, for the stage's digest."""
    facts: dict[str, Any] = protocol.model_dump(mode="json", include={"name", "version", "benchmark", "data", "task", "prompt"})
    return facts


def load_questions(context: Context, protocol: Protocol, limit: int | None) -> QuestionSet:
    """Return the first ``limit`` clusters of a protocol's questions, kept in the worker's memory."""
    import tasks

    kept: dict[tuple[str, int | None], Any] = context.memory.setdefault("questions", {})
    key = (protocol.name, limit)
    if key not in kept:
        root = context.place("data_root") if protocol.dataset is not None and "data_root" in context.stage.places else None
        kept[key] = tasks.load(protocol, data_root=root, limit=limit, partial=bool(context.config.get("incomplete")))
    questions: QuestionSet = kept[key]
    return questions


@functools.cache  # a plan is made several times by one command, and data sets are large
def signature(folder: Path) -> str:
    """Return a digest of a benchmark's folder of a data root: contents of its files, of images their names and sizes.

    Raises:
        UserError: when the folder is not there, or empty.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: --data-root holds a folder per benchmark (docs/data_root.md)")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not files:
        raise UserError(f"{folder} holds no file (docs/data_root.md)")
    pictures = {path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")}
    return digest([[f.relative_to(folder).as_posix(), f.stat().st_size if f in pictures else digest_file(f)] for f in files])


def facts(protocol: str) -> str:
    """Return where the facts on a protocol's questions are kept, relative to the run folder."""
    return f"questions/{protocol}.json"


def questions(context: Context) -> None:
    """Write ``questions/PROTOCOL.parquet`` and ``.json`` and ``images/KEY.png``: what the report shows, without a model."""
    import pandas as pd
    from PIL import Image

    import tasks

    folder = context.out("questions")
    folder.mkdir(parents=True)
    pictures = context.out("images") if "images" in context.stage.targets else None
    if pictures is not None:
        pictures.mkdir(parents=True)
    names = [facts["name"] for facts in context.config["protocols"]]
    for number, name in enumerate(names):
        protocol = tasks.protocol(name)
        found = load_questions(context, protocol, context.config["limit"])
        texts = tasks.prompts(protocol, found)
        rows = [(q.id, q.cluster, q.group, q.image, text, q.answer) for q, text in zip(found.questions, texts, strict=True)]
        frame = pd.DataFrame(rows, columns=["id", "cluster", "group", "image", "prompt", "gold"])
        frame.to_parquet(folder / f"{name}.parquet", index=False)
        write_json(folder / Path(facts(name)).name, question_facts(protocol, found))
        if pictures is not None:
            for key in itertools.islice(found.images, context.config.get("pictures")):
                Image.fromarray(found.images[key]).save(pictures / f"{key}.png")
        context.progress(number + 1, len(names))


def question_facts(protocol: Protocol, found: QuestionSet) -> dict[str, Any]:
    """Return what the manifest says about a protocol's questions."""
    import tasks

    answer, value = tasks.constant_level(protocol, found)
    return {
        "version": protocol.version,
        "digest": found.digest,
        "rows": len(found.questions),
        "expected_rows": protocol.data.rows,
        "constant": {"answer": answer, "value": value},
    }


def evaluation_facts(protocol: Protocol) -> dict[str, Any]:
    """Return everything of a protocol but its captions, for the digests of stages that ask its questions."""
    facts: dict[str, Any] = protocol.model_dump(mode="json", exclude={"title", "description"})
    return facts
