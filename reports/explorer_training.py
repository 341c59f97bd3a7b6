"""The training samples whose weights were recorded: what was asked and taught, what the teacher made of it, every beta.

Weights exist for training samples only: an evaluation question is never weighed, and none is invented for it here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.base import UserError
from reports import explorer_pictures as pictures
from reports.explorer_columns import Interned, Texts, significant, thousandths, write_script
from reports.frames import TRAINING, Run, adapts, read_frame

FOLDER = "samples"
#: Samples per seed and run that are shown; of more, every k-th.
MOST = 20_000

_SHOWN = (*TRAINING, "prompt", "answer", "clean_answer")


@dataclass
class _Columns:
    """The columns of one seed's training samples, over all runs."""

    words: Interned[str] = field(default_factory=Interned)
    texts: Texts = field(default_factory=Texts)
    column: dict[str, list[Any]] = field(
        default_factory=lambda: {
            n: []
            for n in ("id", "benchmark", "prompt", "answer", "clean", "noisy", "blind", "entropy", "correct", "picture", "run")
        }
    )
    weights: list[dict[str, Any]] = field(default_factory=list)
    cut: int = 0


def write_training(
    runs: Sequence[tuple[Run, str]], seeds: Sequence[int], folder: Path
) -> tuple[dict[int, int], list[Path], dict[str, pictures.Picture], str | None]:
    """Write ``samples/training-N.js`` for every seed that recorded weights.

    Args:
        runs: each with the prefix of its students' names; seeds: one file each; folder: the page's.

    Returns:
        Samples per seed, the files, the pictures shown, and the sentence where there is nothing to show (else None).

    Raises:
        UserError: for a damaged file, which it names.
    """
    shown: dict[str, pictures.Picture] = {}
    files: list[Path] = []
    counts: dict[int, int] = {}
    for seed in seeds:
        columns = _Columns()
        for run, prefix in runs:
            _add_run(columns, run, prefix, seed, folder, shown)
        n = len(columns.column["id"])
        if n:
            counts[seed] = n
            value = _value(columns, shown)
            files.append(write_script(folder / FOLDER / f"training-{seed}.js", f"training-{seed}", value))
    if counts:
        return counts, files, shown, None
    return {}, [], shown, "No student of this run learns a weight per sample or task, or its weights were not recorded."


def _recorded(run: Run, seed: int) -> dict[tuple[str, str], pd.DataFrame]:
    """Last record of every sample by (student, channel), for students whose weights are not a given constant."""
    found = {}
    for student in run.manifest.students:
        frame = run.betas_of(student)
        frame = frame[frame["seed"] == seed]
        for channel, part in frame.groupby("channel", sort=False):
            if adapts(student) or part["beta"].min() < part["beta"].max():
                last = part.sort_values("step", kind="stable").drop_duplicates("id", keep="last").set_index("id")
                found[student, str(channel)] = last
    return found


def _add_run(columns: _Columns, run: Run, prefix: str, seed: int, page: Path, shown: dict[str, pictures.Picture]) -> None:
    recorded = _recorded(run, seed)
    if not recorded:
        return
    every = list(dict.fromkeys(str(i) for part in recorded.values() for i in part.index))
    stride = -(-len(every) // MOST)
    ids = every[::stride]
    columns.cut += len(every) - len(ids)
    facts = _facts(run, ids)
    start = len(columns.column["id"])
    wanted = [str(k) for k in facts["image"].dropna().unique() if k]
    shown.update(_pictures(run, [k for k in wanted if k not in shown], page))
    position = {key: k for k, key in enumerate(shown)}
    first = pd.concat(list(recorded.values()))
    first = first[~first.index.duplicated()].reindex(ids)
    column = columns.column
    for name in ("prompt", "answer", "clean_answer", "benchmark", "image"):
        values = ["" if pd.isna(v) else str(v) for v in facts[name]]
        if name == "prompt":
            column["prompt"] += [columns.texts.at(v) for v in values]
        elif name == "image":
            column["picture"] += [position.get(v, -2) if v else -1 for v in values]
        else:
            column["clean" if name == "clean_answer" else name] += [columns.words.at(v) for v in values]
    column["id"] += [columns.words.at(i) for i in ids]
    column["run"] += [columns.words.at(run.name)] * len(ids)
    column["noisy"] += [int(v) for v in first["noisy"]]
    column["correct"] += [int(v) for v in first["teacher_correct"]]
    column["entropy"] += thousandths(first["teacher_entropy"].tolist())
    column["blind"] += [None if pd.isna(v) else int(v) for v in facts["blind"]]
    for (student, channel), part in recorded.items():
        own = part.reindex(ids)
        columns.weights.append(
            {
                "student": prefix + student,
                "channel": channel,
                "start": start,
                "beta": [None if pd.isna(v) else significant(v) for v in own["beta"]],
                "step": [None if pd.isna(v) else int(v) for v in own["step"]],
            }
        )


def _facts(run: Run, ids: Sequence[str]) -> pd.DataFrame:
    """What was asked and taught, one row per id; empty cells where the run keeps no training data."""
    path = run.folder / "data" / "train.parquet"
    if not path.is_file():
        return pd.DataFrame({name: [None] * len(ids) for name in _SHOWN}, index=list(ids))
    frame = read_frame(path, _SHOWN)
    frame = frame[frame["id"].isin(ids)].drop_duplicates("id").set_index("id")
    lost = [i for i in ids if i not in frame.index]
    if lost:
        raise UserError(f"{path} lacks the sample {lost[0]!r}, whose weight is recorded below {run.folder / 'students'}")
    return frame.loc[list(ids)]


def _pictures(run: Run, keys: Sequence[str], page: Path) -> dict[str, pictures.Picture]:
    path = run.folder / "data" / "images.npz"
    if not keys or not path.is_file():
        return {}
    try:
        with np.load(path) as archive:
            return pictures.from_arrays(keys, archive, page, path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: not readable as a NumPy archive ({error}). Remove it and run again") from error


def _value(columns: _Columns, shown: dict[str, pictures.Picture]) -> dict[str, Any]:
    """What ``samples/training-N.js`` holds; ``weights`` are columns that begin at row ``start``."""
    return {
        "strings": columns.words.kept,
        "lines": columns.texts.lines.kept,
        "prompts": [list(t) for t in columns.texts.texts.kept],
        "columns": columns.column,
        "weights": columns.weights,
        "left_out": columns.cut,
        "pictures": {
            "key": list(shown),
            "width": [p.width for p in shown.values()],
            "height": [p.height for p in shown.values()],
            "folder": pictures.FOLDER,
            "longest": pictures.LONGEST,
            "pixelated": pictures.PIXELATED,
        },
    }
