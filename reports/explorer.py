"""The sample explorer's data: every question with every student's reply, as small scripts and thumbnails beside the page.

``samples/questions.js`` holds what was asked, ``samples/answers-N.js`` what the trainings of one seed answered (given models,
which have no seed, stand in each), ``samples/training-N.js`` the training samples with their weights. A page that is opened
from disk may not fetch files, but may load scripts: each calls ``sampleData(name, value)``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.base import UserError, read_jsonl
from reports import explorer_pictures as pictures
from reports.explorer_columns import Interned, Texts, thousandths, write_script
from reports.explorer_training import write_training
from reports.frames import QUESTIONS, Missing, Run, read_frame

FOLDER = "samples"
#: Columns of diagnostics.parquet that stand beside a reply; see reports.measures for what they are.
DIAGNOSED = ("confidence", "entropy", "nll", "teacher_kl")

_Key = tuple[str, int, str, int, str, str]


@dataclass
class _Asked:
    """Questions of all runs: one row per protocol, version, id, text, gold and picture; equal ones are one row."""

    texts: Texts = field(default_factory=Texts)
    rows: Interned[_Key] = field(default_factory=Interned)
    clusters: list[tuple[str, str]] = field(default_factory=list)
    pictures: dict[str, pictures.Picture] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    titles: dict[tuple[str, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Source:
    """One run, the prefix of its students' names, and the row of each of its questions by protocol and id."""

    run: Run
    prefix: str
    rows: dict[str, dict[str, int]]

    def name(self, student: str) -> str:
        """How a student is called on the page."""
        return self.prefix + student


def write(runs: Run | Sequence[Run], folder: Path) -> dict[str, Any]:
    """Write the explorer's files below ``folder`` (the page's folder) and return what the template needs.

    Of several runs, questions that are equal in protocol, version, text, gold and picture are one row, and students are
    called ``RUN: STUDENT``.

    Returns:
        ``missing``: the sentence in the explorer's place, or None; ``notes``: sentences on what is not shown and why;
        ``questions``, ``students``, ``seeds``, ``training``: counts and names for the page; ``files``: the scripts written.

    Raises:
        UserError: for a damaged file, which it names.
    """
    several = [runs] if isinstance(runs, Run) else list(runs)
    empty = {"notes": [], "questions": 0, "students": [], "seeds": [], "training": 0, "training_missing": None, "files": []}
    try:
        context, thumbnails = _write(several, folder)
    except Missing as missing:
        _remove_others(folder, ())
        return {"missing": str(missing), **empty}
    _remove_others(folder, [*context["files"], *thumbnails])
    return {"missing": None, **context}


def _write(runs: Sequence[Run], folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The template's context but ``missing``, and the thumbnails."""
    asked, notes = _Asked(), list[str]()
    sources = [_ask(run, f"{run.name}: " if len(runs) > 1 else "", asked, folder, notes) for run in runs]
    students = [(s, name) for s in sources for name in s.run.students if name in s.run.kinds]
    for source in sources:
        silent = [source.name(name) for name in source.run.students if name not in source.run.kinds]
        if silent:
            notes.append(f"Without scores, so without replies here: {', '.join(f'`{name}`' for name in silent)}.")
    seeds = sorted({seed for s in sources for seed in _seeds(s.run)}) or [0]
    position = {s.name(name): k for k, (s, name) in enumerate(students)}
    files = []
    unsaid: set[str] = set()
    for seed in seeds:
        value = _answers(sources, seed, position, len(asked.rows), unsaid)
        files.append(write_script(folder / FOLDER / f"answers-{seed}.js", f"answers-{seed}", value))
    if unsaid:
        notes.append(
            f"No replies in the run, so the parsed answer stands instead: {', '.join(f'`{n}`' for n in sorted(unsaid))}."
        )
    trained, training_files, shown, training_missing = write_training([(s.run, s.prefix) for s in sources], seeds, folder)
    notes.extend(_picture_notes(asked, [*asked.pictures.values(), *shown.values()], sources))
    value = _questions(asked, students, seeds, trained)
    files.append(write_script(folder / FOLDER / "questions.js", "questions", value))
    context = {
        "notes": notes,
        "questions": len(asked.rows),
        "students": [s.name(name) for s, name in students],
        "seeds": seeds,
        "training": max(trained.values(), default=0),
        "training_missing": training_missing,
        "files": [*files, *training_files],
    }
    return context, [folder / pictures.FOLDER / f"{key}.webp" for key in {*asked.pictures, *shown}]


def _seeds(run: Run) -> list[int]:
    assert run.scores is not None  # _ask has refused a run without
    return sorted(int(s) for s in run.scores["seed"].dropna().unique())


# ---- questions -------------------------------------------------------------------------------------------------------------


def _ask(run: Run, prefix: str, asked: _Asked, page: Path, notes: list[str]) -> _Source:
    """Add a run's questions and pictures."""
    if run.scores is None:
        raise Missing("The run holds no scores.parquet yet.")
    if not (run.folder / "questions").is_dir():
        raise Missing("The run holds no questions/, so no question can be shown.")
    place = pictures.place_of(run.folder / "images", page, run.folder)
    rows: dict[str, dict[str, int]] = {}
    for protocol in run.protocols:
        path = run.folder / "questions" / f"{protocol.name}.parquet"
        if not path.is_file():
            notes.append(f"The run holds no {path.name}, so no question of {protocol.title} is shown.")
            continue
        frame = read_frame(path, QUESTIONS)
        keys = [str(k) for k in frame["image"].dropna().unique() if k]
        found = pictures.from_files([k for k in keys if k not in asked.pictures], run.folder / "images", page, place)
        asked.pictures.update(found)
        asked.lost.update(k for k in keys if k not in asked.pictures)
        version = run.manifest.protocols[protocol.name].version
        asked.titles[protocol.name, version] = protocol.title
        rows[protocol.name] = _add(asked, protocol.name, version, frame)
    if not any(rows.values()):
        raise Missing("The run holds no question of its protocols.")
    return _Source(run, prefix, rows)


def _add(asked: _Asked, protocol: str, version: int, frame: pd.DataFrame) -> dict[str, int]:
    out = {}
    columns = [frame[c].astype(object).where(frame[c].notna(), "").astype(str) for c in QUESTIONS]
    for i, cluster, group, image, prompt, gold in zip(*columns, strict=True):
        before = len(asked.rows)
        at = asked.rows.at((protocol, version, i, asked.texts.at(prompt), gold.strip(), image))
        if len(asked.rows) > before:
            asked.clusters.append((cluster, group.strip()))
        out[i] = at
    return out


def _questions(
    asked: _Asked,
    students: Sequence[tuple[_Source, str]],
    seeds: Sequence[int],
    trained: dict[int, int],
) -> dict[str, Any]:
    """What ``samples/questions.js`` holds; ``picture``: -1 none, -2 one that the run did not keep."""
    words: Interned[str] = Interned()
    keys = {key: k for k, key in enumerate(asked.pictures)}
    places: Interned[str | None] = Interned()
    versions = list(asked.titles)
    column: dict[str, list[int]] = {n: [] for n in ("protocol", "id", "cluster", "group", "prompt", "gold", "picture")}
    for (protocol, version, i, prompt, gold, image), (cluster, group) in zip(asked.rows.kept, asked.clusters, strict=True):
        column["protocol"].append(versions.index((protocol, version)))
        column["prompt"].append(prompt)
        column["picture"].append(keys.get(image, -2) if image else -1)
        for name, text in (("id", i), ("cluster", cluster), ("group", group), ("gold", gold)):
            column[name].append(words.at(text))
    titles = [asked.titles[v] for v in versions]
    return {
        "protocols": [
            {"name": name, "version": version, "title": f"{title} v{version}" if titles.count(title) > 1 else title}
            for (name, version), title in zip(versions, titles, strict=True)
        ],
        "students": [{"name": s.name(name), "kind": s.run.kinds[name]} for s, name in students],
        "seeds": list(seeds),
        "training": {str(seed): n for seed, n in trained.items()},
        "baseline": _baseline([s.name(name) for s, name in students], [s.run.kinds[name] for s, name in students]),
        "strings": words.kept,
        "lines": asked.texts.lines.kept,
        "prompts": [list(t) for t in asked.texts.texts.kept],
        "columns": column,
        "pictures": {
            "key": list(keys),
            "width": [p.width for p in asked.pictures.values()],
            "height": [p.height for p in asked.pictures.values()],
            "place": [places.at(p.place) for p in asked.pictures.values()],
            "places": places.kept,
            "folder": pictures.FOLDER,
            "longest": pictures.LONGEST,
            "pixelated": pictures.PIXELATED,
        },
    }


def _baseline(names: Sequence[str], kinds: Sequence[str]) -> int:
    """Position of the student that flips are counted against at first: fixed weights, else manual ones, else ``ce``."""
    for wanted in ("@fixed", "@manual"):
        for k, name in enumerate(names):
            if name.endswith(wanted):
                return k
    alone = [k for k, name in enumerate(names) if name.rpartition(" ")[2] == "ce"]
    return next(iter([*alone, *(k for k, kind in enumerate(kinds) if kind == "base")]), 0)


# ---- answers ---------------------------------------------------------------------------------------------------------------


def _answers(sources: Sequence[_Source], seed: int, position: dict[str, int], size: int, unsaid: set[str]) -> dict[str, Any]:
    """What ``samples/answers-N.js`` holds: per student one column of outcomes, and one per diagnostic in thousandths."""
    strings: Interned[str] = Interned()
    outcomes: Interned[tuple[int, int, float, int]] = Interned()
    answers: dict[int, list[int | None]] = {}
    diagnosed: dict[str, dict[int, list[int | None]]] = {name: {} for name in DIAGNOSED}
    for source in sources:
        assert source.run.scores is not None
        scores = _of_seed(source.run.scores, seed)
        for (student, protocol), part in scores.groupby(["student", "protocol"], sort=False):
            at = source.rows.get(str(protocol))
            if at is None:
                continue
            said = _replies(source.run, str(student), seed, str(protocol))
            if not said:
                unsaid.add(source.name(str(student)))
            column = answers.setdefault(position[source.name(str(student))], [None] * size)
            for i, prediction, score, bad in zip(
                part["id"], part["prediction"], part["score"], part["unparseable"], strict=True
            ):
                row = at.get(str(i))
                if row is not None:
                    reply = said.get(str(i), str(prediction)).strip()
                    outcome = (strings.at(reply), strings.at(str(prediction).strip()), round(float(score), 4), int(bad))
                    column[row] = outcomes.at(outcome)
        _diagnose(source, seed, position, size, diagnosed)
    return {"strings": strings.kept, "outcomes": [list(o) for o in outcomes.kept], "answers": answers, **diagnosed}


def _of_seed(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows of one seed, and of given models, which have none."""
    return frame[frame["seed"].isna() | (frame["seed"] == seed)]


def _diagnose(
    source: _Source, seed: int, position: dict[str, int], size: int, diagnosed: dict[str, dict[int, list[int | None]]]
) -> None:
    if source.run.diagnostics is None:
        return
    frame = _of_seed(source.run.diagnostics, seed)
    for (student, protocol), part in frame.groupby(["student", "protocol"], sort=False):
        k, at = position.get(source.name(str(student))), source.rows.get(str(protocol))
        if k is None or at is None:
            continue
        rows = [at.get(str(i)) for i in part["id"]]
        for name in DIAGNOSED:
            values = thousandths(part[name].astype("Float64").to_numpy(dtype=float, na_value=float("nan")).tolist())
            if all(v is None for v in values):
                continue
            column = diagnosed[name].setdefault(k, [None] * size)
            for row, value in zip(rows, values, strict=True):
                if row is not None:
                    column[row] = value


def _replies(run: Run, student: str, seed: int, protocol: str) -> dict[str, str]:
    """Replies by question id; a given model's lie under the only seed there is. Empty where the run does not hold them."""
    folder = run.folder / "replies" / student
    paths = [folder / f"seed{seed}" / f"{protocol}.jsonl"]
    if run.kinds[student] != "student":
        paths += sorted(folder.glob(f"seed*/{protocol}.jsonl"))
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        return {}
    try:
        return {str(row["id"]): str(row["reply"]) for row in read_jsonl(path)}
    except KeyError as error:
        raise UserError(f"{path}: a line lacks the field {error}") from error


# ---- what is said, what is swept -------------------------------------------------------------------------------------------


def _picture_notes(asked: _Asked, shown: Sequence[pictures.Picture], sources: Sequence[_Source]) -> list[str]:
    notes = []
    if asked.lost:
        notes.append(f"{len(asked.lost):,} pictures are not kept in the run's images/ and cannot be shown.")
    if any(p.place is None and max(p.width, p.height) > pictures.LONGEST for p in shown):
        where = ", ".join(f"`{s.run.name}/images`" for s in sources)
        notes.append(
            f"Pictures are shown as thumbnails of at most {pictures.LONGEST} pixels: the page lies outside the run folder, "
            f"which holds the whole ones in {where}."
        )
    return notes


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    """Delete what an older report left in the explorer's folder."""
    root = folder / FOLDER
    if not kept:
        shutil.rmtree(root, ignore_errors=False) if root.is_dir() else None
        return
    wanted = set(kept)
    for path in root.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
