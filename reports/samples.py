"""A few dozen questions on which the students disagree, with what each of them said. Not a sample of the benchmark."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError

from harness.base import UserError, read_jsonl
from reports.frames import QUESTIONS, Missing, Run, read_frame
from tasks.catalogue import Protocol

PER_PROTOCOL = 6
THUMBNAIL = 240


@dataclass(frozen=True)
class Reply:
    """One distinct reply and who gave it; ``score`` is the mean over those students, 0..1."""

    text: str
    score: float
    students: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """One question. ``image`` is a data URI or None; ``replies`` stand best first; the teacher is among the students."""

    protocol: str
    id: str
    group: str
    prompt: str
    gold: str
    image: str | None
    pixelated: bool
    replies: tuple[Reply, ...]


def samples(run: Run, per_protocol: int = PER_PROTOCOL) -> list[Sample]:
    """Return the most disputed questions of each protocol, at most one per cluster, in a fixed order.

    Raises:
        Missing: where scores, questions or replies are not in the run, or no two students disagree.
        UserError: for a damaged file.
    """
    if run.scores is None:
        raise Missing("The run holds no scores.parquet yet.")
    if not (run.folder / "questions").is_dir():
        raise Missing("The run holds no questions/, so no question can be shown.")
    if not (run.folder / "replies").is_dir():
        raise Missing("The run holds no replies/, so no reply can be shown.")
    out: list[Sample] = []
    for protocol in run.protocols:
        path = run.folder / "questions" / f"{protocol.name}.parquet"
        if path.is_file():
            out.extend(_of_protocol(run, protocol, read_frame(path, QUESTIONS).set_index("id"), per_protocol))
    if not out:
        raise Missing("No question of this run divides its students.")
    return out


def _of_protocol(run: Run, protocol: Protocol, asked: pd.DataFrame, most: int) -> list[Sample]:
    assert run.scores is not None
    scores = run.scores[run.scores["protocol"] == protocol.name]
    first = scores["seed"].isna() | (scores["seed"] == run.first_seed)
    scores = scores[first & scores["id"].isin(asked.index)]
    trained = scores[scores["kind"] == "student"] if (scores["kind"] == "student").any() else scores  # given models alone
    spread = trained.groupby("id")["score"].var(ddof=0).rename("spread").reset_index()
    spread = spread.merge(trained[["id", "cluster"]].drop_duplicates("id"), on="id")
    spread = spread[spread["spread"] > 0].sort_values(["spread", "id"], ascending=[False, True], kind="stable")
    chosen = spread.drop_duplicates("cluster").head(most)["id"].tolist()
    if not chosen:
        return []
    said = {student: _replies(run, str(student), protocol.name) for student in scores["student"].unique()}
    by_id = dict(tuple(scores[scores["id"].isin(chosen)].groupby("id")))
    return [_sample(run, protocol, str(i), asked.loc[i], by_id[i], said) for i in chosen]


def _replies(run: Run, student: str, protocol: str) -> dict[str, str]:
    """Replies of a student's first seed by question id; empty where the run does not hold them."""
    path = run.folder / "replies" / student / f"seed{run.first_seed}" / f"{protocol}.jsonl"
    if not path.is_file():  # a given model has no seed of its own; take the only folder there is
        others = sorted((run.folder / "replies" / student).glob(f"**/{protocol}.jsonl"))
        if not others:
            return {}
        path = others[0]
    try:
        return {str(row["id"]): str(row["reply"]) for row in read_jsonl(path)}
    except KeyError as error:
        raise UserError(f"{path}: a line lacks the field {error}") from error


def _sample(
    run: Run, protocol: Protocol, name: str, asked: pd.Series, rows: pd.DataFrame, said: dict[str, dict[str, str]]
) -> Sample:
    order = {s: k for k, s in enumerate(run.students)}
    grouped: dict[str, list[tuple[int, str, float]]] = {}
    for student, prediction, score in zip(rows["student"], rows["prediction"], rows["score"], strict=True):
        text = said[student].get(name, str(prediction)).strip() or "(empty reply)"
        grouped.setdefault(text, []).append((order[student], student, float(score)))
    replies = [
        Reply(text, sum(s for _, _, s in who) / len(who), tuple(s for _, s, _ in sorted(who))) for text, who in grouped.items()
    ]
    replies.sort(key=lambda r: (-r.score, -len(r.students), r.text))
    uri, pixelated = _thumbnail(run.folder, asked["image"])
    group, prompt, gold = (str(asked[key]).strip() for key in ("group", "prompt", "gold"))
    return Sample(protocol.title, name, group, prompt, gold, uri, pixelated, tuple(replies))


def _thumbnail(folder: Path, key: object) -> tuple[str | None, bool]:
    """Return the image as a data URI, so that the page is one file, and whether it is so small that pixels should show."""
    if not isinstance(key, str) or not key:
        return None, False
    path = folder / "images" / f"{key}.png"
    if not path.is_file():
        return None, False
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} is damaged: not readable as an image ({error}). Remove it and run again") from error
    small = max(picture.size) <= THUMBNAIL
    if not small:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, format="PNG" if small else "JPEG")
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}", max(picture.size) <= 128
