"""A corpus's index: rows from a LLaVA file, ScienceQA or the embedded suite, each of their images decoded once."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PositiveInt

import tasks
from harness.base import Strict, UserError, parse, remove

if TYPE_CHECKING:
    from harness.workers import Context
    from students.data.indexing import Found, Source

#: Raise when the same configuration would give other rows.
STAGE_VERSION = 1
_MOST_THREADS = 16


class LlavaOptions(Strict):
    """``rows``: how many rows the file must have, those that are left out included; None: any number."""

    rows: PositiveInt | None = None


class ScienceQAOptions(Strict):
    """``split``: ``train``, ``validation`` or ``test``; ``rows``: how many it must have, None: what its authors count."""

    split: str = "train"
    rows: PositiveInt | None = None


class EmbeddedOptions(Strict):
    """``split``: of the miniature suite; ``images``: how many per benchmark, None: all."""

    split: str = "train"
    images: Annotated[int, Field(ge=1)] | None = None


def target(name: str) -> str:
    """Return where a corpus lies, relative to the run folder."""
    return f"corpora/{name}"


def index(context: Context) -> None:
    """Write ``corpora/NAME``.

    Config: ``name``; ``source``: {format, options}; ``protocols``: facts of those that prompt the rows (``scienceqa`` and
    ``embedded``). Places: ``file`` and ``images`` (``llava``), ``data_root`` (``scienceqa``, where it is not the hub's).

    Raises:
        UserError: see :func:`students.data.indexing.index`.
    """
    from students.data import indexing

    name = context.config["name"]
    folder = context.out(target(name))
    folder.mkdir(parents=True, exist_ok=True)
    source = _source(context, folder)
    checks = context.root / "corpora" / f".{name}.checked.sqlite3"  # outlives a failed attempt
    indexing.index(source, folder, checks, context.settings.skip_unreadable, _threads(), context.progress)
    remove(checks)


def _threads() -> int:
    """Return how many threads decode images: those there are cores for, as the result does not depend on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_THREADS, cores)


def _source(context: Context, folder: Path) -> Source:
    """Return where the rows come from; images that come as bytes are written into the corpus as they are read."""
    from students.data import corpus, indexing, llava_json

    name, given = context.config["name"], context.config["source"]
    kind, options, where = given["format"], given.get("options", {}), f"corpus {name!r}, field 'options'"
    if kind == "llava":
        expected = parse(LlavaOptions, options, where).rows
        path = context.place("file")
        size = path.stat().st_size if path.is_file() else 0
        return indexing.Source(name, kind, llava_json.rows(path, name), size, expected, str(path), context.place("images"))
    images = folder / corpus.IMAGES
    images.mkdir(exist_ok=True)
    protocols = [tasks.protocol(facts["name"]) for facts in context.config["protocols"]]
    if kind == "scienceqa":
        from tasks.sources._train import ROWS

        science = parse(ScienceQAOptions, options, where)
        root = context.place("data_root") if "data_root" in context.stage.places else None
        count = science.rows or ROWS.get(science.split)
        rows = _scienceqa(_agreed(protocols, name), science.split, root, images)
        return indexing.Source(name, kind, rows, count or 0, count, f"ScienceQA's {science.split} split", images)
    if kind == "embedded":
        embedded = parse(EmbeddedOptions, options, where)
        return indexing.Source(name, kind, _embedded(protocols, embedded, images), 0, None, "the embedded suite", images)
    raise UserError(f"corpus {name!r}: unknown format {kind!r}; known: embedded, llava, scienceqa")


def _agreed(protocols: list[tasks.Protocol], name: str) -> tasks.Protocol:
    """Return a protocol whose prompt is that of all."""
    if not protocols:
        raise UserError(f"corpus {name!r}: no protocol of scienceqa says how its rows are prompted; add one to 'protocols'")
    if len({(each.scorer, each.task, each.prompt) for each in protocols}) > 1:
        raise UserError(
            f"corpus {name!r}: {' and '.join(each.name for each in protocols)} prompt the same questions differently, and its"
            " rows can agree with one of them only; keep one in 'protocols'"
        )
    return protocols[0]


def _scienceqa(protocol: tasks.Protocol, split: str, root: Path | None, images: Path) -> Iterator[Found]:
    """Yield ScienceQA's rows; their images are written as they are."""
    from tasks.training import stream

    for number, row in enumerate(stream(protocol, split, root), start=1):
        key = None if row.image is None else _keep(images, row.image)
        yield _found(row.id, row.benchmark, row.prompt, row.answer, key, number)


def _embedded(protocols: list[tasks.Protocol], options: EmbeddedOptions, images: Path) -> Iterator[Found]:
    """Yield the miniature suite's rows; its images are written as PNG."""
    from PIL import Image

    from tasks.training import training_rows

    more: dict[str, Any] = {} if options.images is None else {"images": options.images}
    made = training_rows(protocols, split=options.split, **more)
    for key, pixels in made.images.items():
        Image.fromarray(pixels).save(images / f"{key}.png")
    for number, row in enumerate(made.rows.to_dict("records"), start=1):
        shown = f"{row['image']}.png" if isinstance(row["image"], str) else None
        yield _found(row["id"], row["benchmark"], row["prompt"], row["answer"], shown, number)


def _found(name: str, source: str, prompt: str, answer: str, key: str | None, number: int) -> Found:
    """Return a question as a row: its image, if it has one, before its text, as LLaVA writes it."""
    from students.data.conversations import IMAGE, Conversation, Turn
    from students.data.indexing import Found

    user = prompt if key is None else f"{IMAGE}\n{prompt}"
    shown = () if key is None else (key,)
    return Found(name, Conversation(name, source, shown, (Turn(user, answer),)), read=number)


def _keep(images: Path, encoded: bytes) -> str:
    """Write an image once, under the digest of its bytes, and return its key; its content says what it is, not its name."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            suffix = str(picture.format).lower()
    except (UnidentifiedImageError, OSError, SyntaxError):
        suffix = "damaged"  # the check that follows names it
    key = f"{hashlib.sha256(encoded).hexdigest()[:16]}.{suffix}"
    if not (images / key).exists():
        (images / key).write_bytes(encoded)
    return key
