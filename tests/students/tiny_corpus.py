"""A tiny LLaVA-format corpus with real JPEG images, for tests of whatever trains on one."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from students.data import corpus, indexing, llava_json

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 200), "white": (240, 240, 240)}
#: Every word of the questions and replies, for tokenizers that are made for a test.
WORDS = ("What", "colour", "is", "it", "?", "Say", "one", "word", ".", "Two", "plus", "three", "four", "five", "six", "nine",
         "The", "picture", "sum", "A", "square", *COLOURS)  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A LLaVA file and the folder of its images."""

    json: Path
    images: Path


def llava_corpus(folder: Path, rows: int = 12, seed: int = 0, text_only: float = 0.25, side: int = 24) -> Tiny:
    """Write ``corpus.json`` and ``images/``: ``rows`` rows of one or two turns, of which this share shows no image."""
    rng = random.Random(seed)
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    made = []
    for number in range(rows):
        if rng.random() < text_only:
            made.append(
                {
                    "id": f"text-{number}",
                    "conversations": _said("Two plus three ?", rng.choice(["five .", "The sum is five ."])),
                }
            )
            continue
        colour = rng.choice(list(COLOURS))
        name = f"{colour}/{number:06d}.jpg"
        (pictures / colour).mkdir(exist_ok=True)
        _square(COLOURS[colour], side, seed * 1000 + number).save(pictures / name, quality=90)
        said = _said("What colour is it ?\n<image>" if rng.random() < 0.5 else "<image>\nWhat colour is it ?", f"{colour} .")
        if rng.random() < 0.5:
            said += _said("Say one word .", f"The square is {colour} .")
        made.append({"id": number, "image": name, "conversations": said})
    path = folder / "corpus.json"
    path.write_text(json.dumps(made))
    return Tiny(path, pictures)


def indexed(folder: Path, rows: int = 12, seed: int = 0, name: str = "tiny", **options: float) -> corpus.IndexedCorpus:
    """Write a tiny corpus, index it, and open it."""
    tiny = llava_corpus(folder / "source", rows, seed, **options)
    found = llava_json.rows(tiny.json, name)
    source = indexing.Source(name, "llava", found, tiny.json.stat().st_size, rows, str(tiny.json), tiny.images)
    indexing.index(source, folder / name, folder / "checks.sqlite3")
    return corpus.IndexedCorpus(folder / name, tiny.images)


def _said(question: str, reply: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]


def _square(colour: tuple[int, int, int], side: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-20, 21, size=(side, side + seed % 3, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
