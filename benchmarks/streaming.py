"""Does memory grow with a corpus? ``python benchmarks/streaming.py``: minutes on one core, 2 GB of disk, no network. Linux.

Writes synthetic LLaVA files of several sizes (a tenth as many distinct images as rows, a fifth of the rows without image), and
for each, in a process of its own: indexes it, decoding every image; then reads every row in the order of an epoch, grouped by
modality and length, with the images of every hundredth row. What is measured is the most memory at once beyond what the process
held before (the kernel's VmHWM), after one small corpus to warm up. Pages of the mapped index (14 bytes a row) are part of
it and shown beside it: they are the file's own, and the kernel takes them back when it needs memory.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from harness.base import write_json
from students.data import corpus, indexing, llava_json
from students.data.order import Order

PER_STEP = 128
WARM_UP = 2_000
PER_FOLDER = 5_000

console = Console()
Sizes = Annotated[list[int], typer.Option("--rows", min=PER_STEP, help="Rows of a corpus; several times for several.")]
Out = Annotated[Path, typer.Option("--out", help="JSON file with the numbers.")]
Scratch = Annotated[Path | None, typer.Option("--scratch", help="Where to write the corpora; default: the temporary folder.")]


@dataclass(frozen=True)
class Phase:
    """What a phase took: seconds; the most memory at once beyond the start, MiB; pages of mapped files at its end, MiB."""

    seconds: float
    peak_mib: float
    mapped_mib: float


@dataclass(frozen=True)
class Result:
    """One corpus: its rows, distinct images and bytes of JSON, and what indexing and reading it took."""

    rows: int
    images: int
    json_mib: float
    index: Phase
    read: Phase


def main(
    rows: Sizes = [10_000, 1_000_000],  # noqa: B006 - typer reads a list
    out: Out = Path("runs/benchmarks/streaming.json"),
    scratch: Scratch = None,
) -> None:
    """Measure corpora of these sizes, each in a process of its own."""
    results = []
    for count in rows:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            console.print(f"{count:,} rows ...")
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                results.append(pool.submit(measure, Path(folder), count).result())
    write_json(out, [asdict(result) for result in results])
    console.print(table(results))


def measure(folder: Path, rows: int) -> Result:
    """Write, index and read one corpus."""
    _work(folder / "warm", WARM_UP)
    return _work(folder / "real", rows)


def _work(folder: Path, rows: int) -> Result:
    images = max(1, rows // 10)
    write(folder, rows, images)
    path = folder / "rows.json"
    size = path.stat().st_size
    source = indexing.Source("synthetic", "llava", llava_json.rows(path, "synthetic"), size, rows, str(path), folder / "images")
    indexed = phase(lambda: indexing.index(source, folder / "index", folder / "checks"))
    return Result(rows, images, size / 2**20, indexed, phase(lambda: read(folder)))


def write(folder: Path, rows: int, images: int, seed: int = 0) -> None:
    """Write the file and the images, a row at a time."""
    rng = random.Random(seed)
    words = ["red", "green", "square", "table", "under", "the", "a", "and", "picture", "shows", "seven", "people"]
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        if number % PER_FOLDER == 0:
            (folder / "images" / str(number // PER_FOLDER)).mkdir()
        held = io.BytesIO()
        pixels = np.full((12, 12, 3), (number % 256, number // 256 % 256, number // 65536), np.uint8)
        Image.fromarray(pixels).save(held, "JPEG")
        (folder / "images" / _key(number)).write_bytes(held.getvalue())
    with (folder / "rows.json").open("w") as file:
        for number in range(rows):
            said = [
                {"from": speaker, "value": " ".join(rng.choices(words, k=rng.randint(3, most)))}
                for _ in range(rng.randint(1, 3))
                for speaker, most in (("human", 20), ("gpt", 60))
            ]
            row: dict[str, object] = {"id": f"{number:09d}", "conversations": said}
            if number % 5:
                row["image"] = _key(rng.randrange(images))
                said[0]["value"] = f"<image>\n{said[0]['value']}"
            file.write(("[" if number == 0 else ",\n") + json.dumps(row))
        file.write("]\n")


def _key(number: int) -> str:
    return f"{number // PER_FOLDER}/{number:08d}.jpg"


def read(folder: Path) -> corpus.IndexedCorpus:
    """Read an epoch; return the corpus, whose arrays stay mapped until it is dropped."""
    rows = corpus.IndexedCorpus(folder / "index", folder / "images")
    order = Order(rows.lengths, rows.shows, PER_STEP, 0, "modality_length", epochs=1)
    for step in range(order.steps):
        for index in order.members(step):
            conversation = rows[index]
            if index % 100 == 0:
                rows.pictures(conversation)
    return rows


def phase(work: Callable[[], object]) -> Phase:
    """Do something and measure it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is held now
    before, files = _held("VmHWM"), _held("RssFile")
    started = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - started
    mapped = _held("RssFile") - files
    del kept  # what was mapped was mapped until here
    return Phase(round(seconds, 1), round(_held("VmHWM") - before, 1), round(mapped, 1))


def _held(field: str) -> float:
    """Return a field of the kernel's account of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def table(results: list[Result]) -> Table:
    """Return the numbers for people."""
    made = Table("rows", "images", "JSON MiB", "index s", "index peak MiB", "read s", "read peak MiB", "of that mapped MiB")
    for result in results:
        cells = (result.index.seconds, result.index.peak_mib, result.read.seconds, result.read.peak_mib, result.read.mapped_mib)
        made.add_row(f"{result.rows:,}", f"{result.images:,}", f"{result.json_mib:.0f}", *map(str, cells))
    return made


if __name__ == "__main__":
    typer.run(main)
