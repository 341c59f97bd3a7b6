"""A run folder as tidy frames: what a report reads, checked once, with every damaged file named.

Only the files of the run folder's contract are read, never a model. A piece that is not there raises :class:`Missing`
when it is asked for, and the report says so in place; a piece that is there but unreadable is a ``UserError``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pydantic

from harness.base import UserError, digest_file, parse, read_json, read_jsonl
from tasks.catalogue import Protocol
from tasks.catalogue import protocol as find_protocol

SCORES = (
    "student", "kind", "seed", "protocol", "protocol_version", "id", "cluster", "group", "gold", "prediction", "score",
    "unparseable",
)  # fmt: skip
DIAGNOSTICS = ("student", "seed", "protocol", "id", "nll", "confidence", "entropy", "teacher_agrees", "teacher_kl")
BETAS = ("step", "id", "channel", "beta", "energy", "teacher_entropy", "teacher_correct", "noisy")
QUESTIONS = ("id", "cluster", "group", "image", "prompt", "gold")
COST = ("seconds", "peak_memory_bytes", "samples_seen", "teacher_passes_shared", "teacher_passes_own")
TRAINING = ("id", "benchmark", "image", "noisy", "blind")

#: Weightings whose weights are given before training, or told the truth: they learn and infer nothing.
GIVEN = ("fixed", "manual", "oracle")


class Missing(Exception):
    """A piece that the run does not hold. Not an error: the report prints the sentence where the piece would stand."""


class Irrelevant(Missing):
    """A piece that this run has no use for. The report leaves it out without a word, unless it was asked for by name."""


class _Open(pydantic.BaseModel):
    """Part of a manifest: fields that a report does not use are allowed."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)


class PresetFacts(_Open):
    """What a report says of the preset."""

    name: str
    title: str
    description: str
    data: dict[str, Any] = {}


class Constant(_Open):
    """The best constant answer and what it scores, in the protocol's unit."""

    answer: str
    value: float


class ProtocolRecord(_Open):
    """A protocol as the run met it."""

    version: int
    digest: str | None = None
    rows: int | None = None
    expected_rows: int | None = None
    constant: Constant | None = None


class Manifest(_Open):
    """``manifest.json``, as far as a report reads it."""

    preset: PresetFacts
    students: list[str]
    seeds: list[int]
    protocols: dict[str, ProtocolRecord]
    limit: int | None = None
    models: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None
    hardware: dict[str, Any] = {}
    threads: int | None = None
    weights: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    command: str | list[str] | None = None
    left_out: list[str] = []
    failed: list[str] = []
    signal: list[str] = []
    vision: list[str] = []


def family(student: str) -> tuple[str, ...]:
    """Return a recipe's channels other than ``ce``: what it distils with. Empty for ``ce``, ``teacher`` and ``base``."""
    channels = student.partition("@")[0].split("+")
    return () if student in ("teacher", "base") else tuple(c for c in channels if c != "ce")


def weighting(student: str) -> str:
    """Return what follows the first ``@`` of a recipe: ``task``, ``fixed@lambda4``; empty for a single channel."""
    return student.partition("@")[2]


def adapts(student: str) -> bool:
    """Whether a recipe's weights come out of the training: not of a single channel, nor of a weighting in ``GIVEN``."""
    return bool(family(student)) and weighting(student).partition("@")[0] not in ("", *GIVEN)


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it is; digest: SHA-256 of ``manifest.json``.
        protocols: the run's protocols in the manifest's order; their versions equal the installed ones.
        scores, diagnostics: the frames of the contract, or None where the file is not there.
        label: what the run is called beside others, where its folder's name is not enough.
    """

    folder: Path
    manifest: Manifest
    digest: str
    protocols: tuple[Protocol, ...]
    scores: pd.DataFrame | None
    diagnostics: pd.DataFrame | None
    label: str | None = None

    @property
    def name(self) -> str:
        """What the run is called in its report."""
        return self.label or self.folder.resolve().name

    @property
    def slug(self) -> str:
        """Its name as part of a file's name."""
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in self.name)

    @property
    def suite(self) -> str | None:
        """What titles and captions must say of the questions: None only if every protocol is an official one."""
        if any(p.name.endswith("@miniature") for p in self.protocols):
            return "miniature suite"
        if self.partial:
            return "PARTIAL data"
        return None if all(p.official for p in self.protocols) else "unofficial protocol"

    @functools.cached_property
    def partial(self) -> dict[str, tuple[int, int]]:
        """Protocols that were not asked in full: name -> (questions asked, questions that the protocol has)."""
        found = {name: (r.rows, r.expected_rows) for name, r in self.manifest.protocols.items()}
        return {name: (rows, full) for name, (rows, full) in found.items() if rows and full and rows != full}

    def chance(self, protocol: Protocol) -> float | None:
        """Return the level of random guessing; None where there is none, or only part of the questions was asked."""
        return None if protocol.name in self.partial else protocol.chance

    def unread(self, student: str) -> tuple[int, int]:
        """Return (unknown tokens, tokens) of a student's prompts: words that its tokenizer does not know."""
        files = [self.folder / "replies" / student / "seed0" / f"{p.name}.words.json" for p in self.protocols]
        counts = [read_json(path) for path in files if path.is_file()]
        return sum(int(c["tokens_unknown"]) for c in counts), sum(int(c["tokens"]) for c in counts)

    @functools.cached_property
    def asked(self) -> list[dict[str, Any]]:
        """How each model's replies to each protocol were made, as its evaluation recorded it; {} of one that did not."""
        places = [(s, k, p) for s in self.students for k in sorted({0, *self.manifest.seeds}) for p in self.protocols]
        paths = [self.folder / "replies" / s / f"seed{k}" / f"{p.name}.words.json" for s, k, p in places]
        return [dict(read_json(path).get("how") or {}) for path in paths if path.is_file()]

    @functools.cached_property
    def students(self) -> list[str]:
        """Rows of a report: given models first, then the preset's students in its order, then whatever else was scored."""
        scored = [] if self.scores is None else [str(s) for s in self.scores["student"].unique()]
        given = [s for s in ("teacher", "base") if s in scored]
        named = [*given, *self.manifest.students]
        return [*named, *sorted(set(scored) - set(named))]

    @property
    def first_seed(self) -> int:
        """The seed whose replies are shown; given models, which have none, lie in the same place as seed 0."""
        return min(self.manifest.seeds, default=0)

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of each scored student: student, teacher, base, external."""
        if self.scores is None:
            return {}
        first = self.scores.drop_duplicates("student")
        return dict(zip(first["student"], first["kind"], strict=True))

    @functools.cached_property
    def _by_student(self) -> dict[tuple[str, str], pd.DataFrame]:
        if self.scores is None:
            return {}
        return {(str(s), str(p)): part for (s, p), part in self.scores.groupby(["student", "protocol"], sort=False)}

    def scored(self, student: str, protocol: str) -> pd.DataFrame:
        """Return one student's rows of ``scores.parquet`` on one protocol, all seeds."""
        if self.scores is None:
            raise Missing("The run holds no scores.parquet yet.")
        rows = self._by_student.get((student, protocol))
        if rows is None:
            raise Missing(f"{student} has no scores on {protocol}.")
        return rows

    @functools.cached_property
    def diagnosed(self) -> pd.DataFrame:
        """``diagnostics.parquet`` with each question's cluster beside it."""
        if self.diagnostics is None:
            raise Missing("The run holds no diagnostics.parquet.")
        if self.scores is None:
            raise Missing("The run holds no scores.parquet, which names the clusters of the diagnostics.")
        clusters = self.scores[["protocol", "id", "cluster"]].drop_duplicates(["protocol", "id"])
        joined = self.diagnostics.merge(clusters, on=["protocol", "id"], how="left", validate="many_to_one")
        lost = joined["cluster"].isna()
        if lost.any():
            row = joined[lost].iloc[0]
            raise UserError(
                f"{self.folder / 'diagnostics.parquet'} holds question {row['id']!r} of {row['protocol']}, "
                "which scores.parquet does not. Remove both and run the same command again"
            )
        return joined

    def seed_folders(self, student: str) -> list[tuple[int, Path]]:
        """Return (seed, folder) for every training of a student that the run holds."""
        found = []
        for folder in (self.folder / "students" / student).glob("seed*"):
            number = folder.name.removeprefix("seed")
            if number.isdecimal() and folder.is_dir():
                found.append((int(number), folder))
        return sorted(found)

    @functools.cached_property
    def dynamics(self) -> pd.DataFrame:
        """All ``dynamics.jsonl``, one row per student, seed, step and channel: loss, weight, total, seconds of the step."""
        rows: list[dict[str, Any]] = []
        for student in self.manifest.students:
            for seed, folder in self.seed_folders(student):
                path = folder / "dynamics.jsonl"
                if path.is_file():
                    rows.extend(_flatten(path, student, seed))
        if not rows:
            raise Missing("The run holds no dynamics.jsonl: nothing was trained in it, or its logs are gone.")
        return pd.DataFrame(rows)

    def costs(self, student: str) -> list[dict[str, Any]]:
        """``cost.json`` of every training of a student; empty where an older version trained it."""
        found = []
        for _, folder in self.seed_folders(student):
            path = folder / "cost.json"
            if path.is_file():
                found.append(read_json(path))
                lost = [name for name in COST if not isinstance(found[-1].get(name), int | float | None)]
                lost += [name for name in COST if name not in found[-1]]
                if lost:
                    raise UserError(f"{path} is damaged: no number called {', '.join(lost)}. Remove it and run again")
        return found

    @functools.cached_property
    def betas(self) -> pd.DataFrame:
        """All ``betas.parquet`` of students whose weights come out of the training, with columns student and seed."""
        parts = [self.betas_of(student) for student in self.manifest.students if adapts(student)]
        if not parts:
            raise Irrelevant("No student of this run learns its weighting.")
        parts = [p for p in parts if len(p)]
        if not parts:
            raise Missing("The run holds no betas.parquet of a student with a learned weighting.")
        return pd.concat(parts, ignore_index=True)

    def betas_of(self, student: str) -> pd.DataFrame:
        """Return ``betas.parquet`` of one student, all seeds, with columns student and seed; empty where there is none.

        Raises:
            UserError: for a weight that is negative or not finite. Zero is a weight: an oracle's, or an underflow.
        """
        if student not in self._betas:
            self._betas[student] = self._read_betas(student)
        return self._betas[student]

    @functools.cached_property
    def _betas(self) -> dict[str, pd.DataFrame]:
        return {}

    def _read_betas(self, student: str) -> pd.DataFrame:
        parts = []
        for seed, folder in self.seed_folders(student):
            path = folder / "betas.parquet"
            if not path.is_file():
                continue
            frame = read_frame(path, BETAS).assign(student=student, seed=seed)
            beta = frame["beta"].to_numpy(dtype=np.float64)
            bad = frame[~(np.isfinite(beta) & (beta >= 0))]
            if len(bad):
                row = bad.iloc[0]
                what = f"sample {row['id']!r} at step {row['step']} has the weight {row['beta']}"
                raise UserError(f"{path}: {what}, expected a finite number, 0 or more")
            parts.append(frame)
        empty = pd.DataFrame(columns=[*BETAS, "student", "seed"])
        return pd.concat(parts, ignore_index=True) if parts else empty

    @functools.cached_property
    def diagnosed_by_student(self) -> dict[str, pd.DataFrame]:
        """:attr:`diagnosed`, split."""
        return {str(s): part for s, part in self.diagnosed.groupby("student", sort=False)}

    @functools.cached_property
    def scores_by_student(self) -> dict[str, pd.DataFrame]:
        """``scores.parquet``, split by student; :class:`Missing` where there is none."""
        if self.scores is None:
            raise Missing("The run holds no scores.parquet yet.")
        return {str(s): part for s, part in self.scores.groupby("student", sort=False)}

    @functools.cached_property
    def training(self) -> pd.DataFrame:
        """``data/train.parquet``: one row per training sample, with what was planted in it (noisy, blind)."""
        path = self.folder / "data" / "train.parquet"
        if not path.is_file():
            raise Missing("The run holds no data/train.parquet, which says what was planted in the training data.")
        return read_frame(path, TRAINING)


def _flatten(path: Path, student: str, seed: int) -> list[dict[str, Any]]:
    """One row per step and channel of a ``dynamics.jsonl``."""
    out = []
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            for channel, loss in line["loss"].items():  # null where no sample of the step has the channel
                out.append(
                    {
                        "student": student,
                        "seed": seed,
                        "step": int(line["step"]),
                        "channel": channel,
                        "loss": _number(loss),
                        "weight": _number(line["weight"].get(channel)),  # a channel may be watched without a weight
                        "total": float(line["total"]),
                        "seconds": _number(line.get("seconds")),
                    }
                )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: expected step, loss, weight and total, got {error!r}") from error
    return out


def _number(value: Any) -> float:
    """A logged number; null is NaN, which every mean leaves out."""
    return float("nan") if value is None else float(value)


def read_frame(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a Parquet file that must hold ``columns``; a damaged or foreign file is a UserError that names it."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged: not readable as Parquet ({reason}). Remove it and run again") from error
    lost = [c for c in columns if c not in frame.columns]
    if lost:
        raise UserError(f"{path} lacks the column(s) {', '.join(lost)}; it holds {', '.join(map(str, frame.columns))}")
    return frame


def load(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: no manifest (not a run folder), a damaged file (named), or a protocol whose installed version is not
            the one that the run was scored under.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it holds no manifest.json")
    manifest = parse(Manifest, read_json(path), str(path))
    protocols = []
    for name, record in manifest.protocols.items():
        protocol = find_protocol(name)
        if protocol.version != record.version:
            raise UserError(
                f"{folder} was scored under {name} version {record.version}, installed is version {protocol.version}: "
                "score it again, or report it with the version of this project that made it"
            )
        protocols.append(protocol)
    scores = _optional(folder / "scores.parquet", SCORES)
    diagnostics = _optional(folder / "diagnostics.parquet", DIAGNOSTICS)
    return Run(folder, manifest, digest_file(path), tuple(protocols), scores, diagnostics)


def _optional(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    return read_frame(path, columns) if path.is_file() else None
