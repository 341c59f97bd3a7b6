"""``python -m harness.miniature``: make the tower, the teacher and the student base that ship with the embedded suite.

They learn from scenes of the ``pretrain`` split, none of which any other split shows. The options are
``students/miniature/making.yaml``; what came out (scores, versions, digests) is recorded beside the weights.
"""

from __future__ import annotations

import itertools
import platform
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import RootModel

from harness import base, pretraining
from harness.pretraining import Corpus, Making, Progress

if TYPE_CHECKING:
    import pandas as pd

    from tasks.catalogue import Protocol
    from tasks.miniature.scene import Scene

FOLDER = Path(__file__).resolve().parent.parent / "students" / "miniature"
ROLES = ("tower", "teacher", "base")
PATCHES = 9
LETTERS = "ABCD"


def options() -> dict[str, Making]:
    """Return how each of the three models is made, by role, from ``students/miniature/making.yaml``."""
    return dict(base.read_yaml(FOLDER / "making.yaml", RootModel[dict[str, Making]]).root)


def _describe(scene: Scene, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield (image, question, answer): what stands in a cell; it teaches position and the binding of attributes."""
    from tasks.miniature.scene import COLUMNS, ROWS

    row, column = rng.randrange(3), rng.randrange(3)
    there = {(thing.row, thing.column): thing for thing in scene.things}
    cells = [rng.choice(sorted(there))] + ([(row, column)] if row != scene.text_row else [])
    for cell in cells:
        thing = there.get(cell)
        answer = f"{thing.size} {thing.color} {thing.kind}" if thing else "nothing"
        yield scene.id, f"What is at the {ROWS[cell[0]]} {COLUMNS[cell[1]]}?\n{pretraining.PHRASES[0]}", answer


def _echo(rng: random.Random) -> tuple[str, str]:
    """Return a multiple-choice question that names its answer; it teaches what an option's letter is."""
    from tasks.miniature.flavours.scienceqa import MATERIALS
    from tasks.miniature.scene import COLORS, KINDS, NUMBERS

    choices = rng.sample(rng.choice((KINDS, COLORS, MATERIALS, NUMBERS[:4])), rng.choice((3, 4)))
    right = rng.choice(choices)
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"Which of these is {right}?\n{listed}\n{pretraining.PHRASES[1]}", LETTERS[choices.index(right)]


def _extra(found: list[Scene], seed: int, keys: dict[str, str]) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"miniature extra {seed}")
    for scene in found:
        asked: list[tuple[str | None, str, str]] = [(keys[i], text, answer) for i, text, answer in _describe(scene, rng)]
        if rng.random() < 0.7:
            asked.append((None, *_echo(rng)))
        for number, (image, prompt, answer) in enumerate(asked):
            yield {
                "id": f"extra/{scene.id}/{number}", "benchmark": "extra", "image": image, "prompt": prompt,
                "answer": answer, "clean_answer": answer, "noisy": False, "blind": False,
            }  # fmt: skip


def _shown(scene: Scene) -> tuple[list[list[int]], list[list[str]]]:
    """Return what each patch shows: labels (kind, colour, size, word, tens, ones; 0 for nothing) and words."""
    from tasks.miniature.scene import COLORS, COLUMNS, KINDS, ROWS, SIZES, WORDS

    labels = [[0] * 6 for _ in range(PATCHES)]
    words: list[list[str]] = [[] for _ in range(PATCHES)]
    for thing in scene.things:
        patch = thing.row * 3 + thing.column
        labels[patch][:3] = KINDS.index(thing.kind) + 1, COLORS.index(thing.color) + 1, SIZES.index(thing.size) + 1
        words[patch] = [thing.kind, thing.color, thing.size, ROWS[thing.row], COLUMNS[thing.column]]
    if scene.text is not None and scene.text_row is not None:
        number = scene.text.isdigit()
        said = (0, int(scene.text[0]) + 1, int(scene.text[1]) + 1) if number else (WORDS.index(scene.text) + 1, 0, 0)
        for patch in range(scene.text_row * 3, scene.text_row * 3 + 3):
            labels[patch][3:] = said
            words[patch] = [scene.text]
    return labels, words


def corpus(images: int, seed: int) -> Corpus:
    """Make the pretraining corpus: the six flavours' questions about ``images`` scenes, and what every patch shows.

    Beside the six it asks what stands in a cell, and multiple-choice questions that name their answer.
    """
    import pandas as pd

    from students.data import samples
    from tasks.miniature.build import picture
    from tasks.miniature.scene import scenes
    from tasks.training import training_rows

    found = list(itertools.islice(scenes("pretrain"), images))
    drawn = {scene.id: picture(scene) for scene in found}
    keys = {name: key for name, (key, _) in drawn.items()}
    asked = training_rows(protocols(), split="pretrain", images=images)
    rows = pd.concat([asked.rows, pd.DataFrame(list(_extra(found, seed, keys)))], ignore_index=True)
    shown = {keys[scene.id]: _shown(scene) for scene in found}
    return Corpus(
        samples.from_frame(rows, dict(drawn.values())),
        {key: labels for key, (labels, _) in shown.items()},
        {key: words for key, (_, words) in shown.items()},
    )


def protocols() -> list[Protocol]:
    """Return the protocols of the embedded suite."""
    import tasks

    return [tasks.protocol(name) for name in tasks.names() if name.endswith("@miniature")]


def measure(checkpoint: Path, splits: tuple[str, ...] = ("dev", "test")) -> dict[str, Any]:
    """Score a checkpoint on the embedded suite: value with its 95 % interval and n, per split and protocol."""
    import tasks
    from reports.statistics import interval
    from tasks.evaluate import evaluate
    from tasks.lmms import CheckpointModel

    model = CheckpointModel(checkpoint)
    out: dict[str, Any] = {}
    for split, protocol in itertools.product(splits, protocols()):
        questions = tasks.load(protocol, split=split)
        with tempfile.TemporaryDirectory() as folder:
            replies = Path(folder) / "replies.jsonl"
            evaluate(checkpoint, protocol, questions, model=model, batch_size=64, replies_path=replies)
            rows: pd.DataFrame = tasks.score(protocol, base.read_jsonl(replies), questions).rows
        found = interval(rows, protocol)
        ends = {"value": found.value, "low": found.low, "high": found.high}
        bounds = {name: None if end is None else round(end, 2) for name, end in ends.items()}
        constant = round(tasks.constant_level(protocol, questions)[1], 2)
        out.setdefault(split, {})[protocol.name] = {**bounds, "n": found.n, "constant": constant, "chance": protocol.chance}
    return out


def _record(folder: Path, measured: dict[str, Any], threads: int) -> dict[str, Any]:
    from tasks.miniature import VERSION

    return {
        "made_by": "python -m harness.miniature",
        "data_version": VERSION,
        "making": {role: making.model_dump(mode="json") for role, making in options().items()},
        "measured": measured,
        "scores": {role: measure(folder / role) for role in ROLES[1:]},
        "digests": {role: base.digest_folder(folder / role, "*.safetensors") for role in ROLES},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "lmms-eval")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": threads,
    }


def make(out: Path, progress: Callable[[str], Progress], threads: int, roles: Sequence[str] = ROLES) -> None:
    """Make the three models into ``out``; everything is made beside it first, then moved in.

    Args:
        out: a folder; its ``tower``, ``teacher``, ``base`` and ``record.json`` are replaced.
        progress: called with a role, returns what is told about its steps.
        threads: of torch; part of the record, since another number gives other last digits.
        roles: which to make; the others are taken from ``out`` as they are, with their record.

    Raises:
        UserError: for an unknown role, or a tower made again under models that were built on the old one.
    """
    import torch

    for role in roles:
        if role not in ROLES:
            raise base.unknown("role", role, ROLES)
    if "tower" in roles and set(roles) != set(ROLES):
        raise base.UserError("a new tower needs a new teacher and a new base: give all three roles, or none")
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    measured = {} if set(roles) == set(ROLES) else base.read_json(out / "record.json")["measured"]
    with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as name:
        folder = Path(name)
        for role in ROLES:
            if role not in roles:
                shutil.copytree(out / role, folder / role)
                continue
            making = options()[role]
            tower = None if role == "tower" else folder / "tower"
            learned = corpus(making.images, making.seed)
            measured[role] = pretraining.make(role, making, learned, tower, folder / role, progress(role))
            (folder / role / "made.json").unlink()  # all of it is in record.json
        for path in folder.rglob("*.*"):
            path.chmod(0o644)  # safetensors files come out readable by their owner alone, which a wheel would keep
        record = _record(folder, measured, threads)
        for role in ROLES:
            base.remove(out / role)
            shutil.move(folder / role, out / role)
    base.write_json(out / "record.json", record)


def main(
    out: Annotated[Path, typer.Option(help="Where to put tower/, teacher/, base/ and record.json.")] = FOLDER,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    roles: Annotated[str, typer.Option(help="Which to make, by commas; the others stay as they are.")] = ",".join(ROLES),
) -> None:
    """Make the tower, the teacher and the student base of the embedded suite (about half an hour on two cores)."""
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    base.offline()
    base.shim()
    columns = (SpinnerColumn(), *Bar.get_default_columns()[:3], TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Bar(*columns) as bar:

        def progress(role: str) -> Progress:
            task = bar.add_task(role)
            return lambda done, total: bar.update(task, completed=done, total=total)

        make(out, progress, threads, roles.split(","))


if __name__ == "__main__":
    try:
        typer.run(main)
    except base.UserError as error:
        sys.exit(f"error: {error}")
