"""The baseline of the gate: what a run answered, question by question, in one small file that is committed.

The file is xz-compressed: one line of JSON (:class:`Header`), then one byte per question for each student, seed and protocol
in the header's order. Ids stand in the header once, also where several protocols ask the same questions. A byte is the place
of a (score, prediction) pair in the protocol's list of states; predictions beyond the 255 most frequent pairs are forgotten,
scores never. Equal runs and reasons give equal bytes.
"""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.base import Strict, UserError, atomic_path, digest, parse
from tasks.aggregate import aggregate

if TYPE_CHECKING:
    from reports.frames import Run
    from tasks import Protocol

FORMAT = "beta-kd-bench baseline"
_STATES = 255
_TEXT = 60

State = tuple[float, str | None]
Codes = NDArray[np.uint8]


class Asked(Strict):
    """A protocol as the baseline's run met it.

    Attributes:
        version: of the protocol; data: digest of the whole question set, None where the run recorded none.
        questions: digest of id, cluster, group and gold answer of the questions that were asked.
        ids: key into :attr:`Header.ids`.
        states: what a byte of this protocol means: score 0..1, and the prediction or None where it was not kept.
    """

    version: int
    data: str | None
    questions: str
    ids: str
    states: tuple[State, ...]


class Scored(Strict):
    """One model: ``seed`` is None for given models; ``protocols`` in the order of its bytes."""

    name: str
    kind: Literal["student", "teacher", "base", "external"]
    seed: int | None
    protocols: tuple[str, ...]


class Header(Strict):
    """The first line of a baseline.

    Attributes:
        reason: why this baseline was taken, given with ``--reason``.
        git_commit, manifest: of the run: the commit that made it, and the SHA-256 of its ``manifest.json``.
        preset, versions, processor: of the run, to tell a changed environment from a changed model.
        ids: question ids, sorted, once per set of questions.
    """

    format: Literal["beta-kd-bench baseline"]
    version: Literal[1]
    reason: str
    git_commit: str | None
    manifest: str
    preset: str
    versions: dict[str, str]
    processor: str | None
    ids: dict[str, tuple[str, ...]]
    protocols: dict[str, Asked]
    models: tuple[Scored, ...]


@dataclass(frozen=True)
class Baseline:
    """A baseline in memory: the header, and one array of bytes per (name, seed, protocol)."""

    header: Header
    codes: dict[tuple[str, int | None, str], Codes]

    def students(self) -> list[str]:
        """Return the names of the models, each once, in the baseline's order."""
        return list(dict.fromkeys(model.name for model in self.header.models))

    def kind(self, student: str) -> str:
        """Return what kind of model it is: student, teacher, base, external."""
        return next(model.kind for model in self.header.models if model.name == student)

    def protocols(self, student: str) -> list[str]:
        """Return the protocols on which a student was scored, by any seed."""
        found = (p for model in self.header.models if model.name == student for p in model.protocols)
        return list(dict.fromkeys(found))

    def rows(self, student: str, protocol: str, questions: pd.DataFrame) -> pd.DataFrame:
        """Return a student's rows on one protocol, all seeds, in the columns that the statistics read.

        Args:
            questions: id, cluster, group, gold, sorted by id; the baseline's own questions (see :func:`questions_of`).
        """
        states = self.header.protocols[protocol].states
        score = np.array([value for value, _ in states], dtype=np.float64)
        text = np.array([said if said is not None else "" for _, said in states], dtype=object)
        kept = np.array([said is not None for _, said in states], dtype=bool)
        parts = []
        for model in self.header.models:
            if model.name == student and protocol in model.protocols:
                codes = self.codes[student, model.seed, protocol]
                own = {"score": score[codes], "prediction": text[codes], "kept": kept[codes], "seed": model.seed}
                parts.append(questions.assign(**own))
        return pd.concat(parts, ignore_index=True).astype({"seed": "Int64"})


# ---- from a run ------------------------------------------------------------------------------------------------------------


def questions_of(run: Run, protocol: str) -> pd.DataFrame:
    """Return id, cluster, group and gold of a protocol's questions, sorted by id.

    Raises:
        UserError: when the run holds no scores, or its students answered different questions.
    """
    if run.scores is None:
        raise UserError(f"{run.folder} holds no scores.parquet: finish the run first")
    rows = run.scores[run.scores["protocol"] == protocol]
    columns = ["id", "cluster", "group", "gold"]
    questions = rows[columns].astype(str).drop_duplicates().sort_values("id", kind="stable").reset_index(drop=True)
    twice = questions["id"][questions["id"].duplicated()]
    if len(twice):
        raise UserError(f"{run.folder}, {protocol}: question {twice.iloc[0]!r} differs between students")
    for (name, label), part in rows.groupby(["student", "seed"], dropna=False):
        seed = _seed(label)
        who = f"{run.folder}, {protocol}: {name}" + ("" if seed is None else f" seed {seed}")
        if part["id"].duplicated().any():
            raise UserError(f"{who} is scored more than once on question {part['id'][part['id'].duplicated()].iloc[0]!r}")
        if len(part) != len(questions):
            lost = questions["id"][~questions["id"].isin(part["id"])].iloc[0]
            raise UserError(f"{who} answered {len(part)} of {len(questions)} questions, not {lost!r}")
    return questions


def questions_digest(questions: pd.DataFrame) -> str:
    """Return the SHA-256 (hex) of the questions as :func:`questions_of` gives them."""
    return digest(questions.to_numpy().tolist())


def take(run: Run, reason: str) -> Baseline:
    """Make a baseline of everything that a run has scored.

    Raises:
        UserError: an empty reason, no scores, more distinct scores than a byte holds, or predictions that matter for a number
            and do not fit beside the scores.
    """
    if not reason.strip():
        raise UserError("--reason is empty; say in a sentence why the baseline changes")
    if run.scores is None or run.scores.empty:
        raise UserError(f"{run.folder} holds no scored questions: finish the run first")
    ids: dict[str, tuple[str, ...]] = {}
    asked: dict[str, Asked] = {}
    codes: dict[tuple[str, int | None, str], Codes] = {}
    for protocol in run.protocols:
        rows = run.scores[run.scores["protocol"] == protocol.name]
        if rows.empty:
            continue
        questions = questions_of(run, protocol.name)
        names = tuple(questions["id"])
        key = digest(list(names))[:12]
        ids[key] = names
        states = _states(rows, protocol.name)
        place = {state: number for number, state in enumerate(states)}
        for (name, seed), part in rows.groupby(["student", "seed"], dropna=False, sort=False):
            ordered = part.sort_values("id", kind="stable")
            codes[str(name), _seed(seed), protocol.name] = _encode(ordered, place)
        record = run.manifest.protocols[protocol.name]
        asked[protocol.name] = Asked(
            version=record.version, data=record.digest, questions=questions_digest(questions), ids=key, states=states
        )
    header = Header(
        format=FORMAT,
        version=1,
        reason=" ".join(reason.split()),
        git_commit=run.manifest.git_commit,
        manifest=run.digest,
        preset=run.manifest.preset.name,
        versions=run.manifest.versions,
        processor=run.manifest.hardware.get("processor"),
        ids=ids,
        protocols=asked,
        models=_models(run, list(codes)),
    )
    made = Baseline(header, codes)
    _verify(made, run)
    return made


def _seed(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _models(run: Run, keys: Sequence[tuple[str, int | None, str]]) -> tuple[Scored, ...]:
    """List the models in the report's order, seeds ascending."""
    pairs = dict.fromkeys((name, seed) for name, seed, _ in keys)
    rank = {name: number for number, name in enumerate(run.students)}
    order = sorted(pairs, key=lambda pair: (rank[pair[0]], -1 if pair[1] is None else pair[1]))
    return tuple(
        Scored.model_validate(
            {
                "name": name,
                "kind": run.kinds[name],
                "seed": seed,
                "protocols": tuple(p.name for p in run.protocols if (name, seed, p.name) in keys),
            }
        )
        for name, seed in order
    )


def _pairs(rows: pd.DataFrame) -> list[State]:
    said = rows["prediction"].astype(str).str.slice(0, _TEXT)
    return list(zip(rows["score"].astype(float), said, strict=True))


def _states(rows: pd.DataFrame, protocol: str) -> tuple[State, ...]:
    """Choose what the bytes of a protocol mean: every score, then the most frequent (score, prediction) pairs."""
    counts = Counter(_pairs(rows))
    scores = sorted({score for score, _ in counts})
    if len(scores) > _STATES:
        raise UserError(f"{protocol}: {len(scores)} distinct scores; a baseline holds at most {_STATES}, one byte per question")
    ranked = sorted(counts, key=lambda pair: (-counts[pair], pair[0], str(pair[1])))
    if len(ranked) <= _STATES:
        return tuple(ranked)
    bare: list[State] = [(score, None) for score in scores]
    return (*bare, *ranked[: _STATES - len(bare)])


def _encode(rows: pd.DataFrame, place: dict[State, int]) -> Codes:
    found = (place[pair] if pair in place else place[pair[0], None] for pair in _pairs(rows))
    return np.fromiter(found, dtype=np.uint8, count=len(rows))


def _verify(made: Baseline, run: Run) -> None:
    """Make sure that every number of the run can be had from the baseline alone."""
    for protocol in run.protocols:
        if protocol.name not in made.header.protocols:
            continue
        questions = questions_of(run, protocol.name)
        for student in made.students():
            if protocol.name not in made.protocols(student):
                continue
            rebuilt, original = made.rows(student, protocol.name, questions), run.scored(student, protocol.name)
            if _numbers(rebuilt, protocol) != _numbers(original, protocol):
                raise UserError(
                    f"{protocol.name}: the number of {student} cannot be rebuilt from one byte per question: aggregation"
                    f" {protocol.aggregation!r} reads more different predictions than the {_STATES} that fit"
                )


def _numbers(rows: pd.DataFrame, protocol: Protocol) -> list[float]:
    parts = (part.sort_values("id") for _, part in rows.groupby("seed", dropna=False, sort=True))
    return [aggregate(part, protocol.aggregation) for part in parts]


# ---- on disk ---------------------------------------------------------------------------------------------------------------


def save(baseline: Baseline, path: Path) -> None:
    """Write a baseline, atomically."""
    text = json.dumps(baseline.header.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    blocks = [baseline.codes[key].tobytes() for key in _keys(baseline.header)]
    with atomic_path(path) as temporary:
        temporary.write_bytes(lzma.compress(b"\n".join([text.encode(), b"".join(blocks)]), preset=9 | lzma.PRESET_EXTREME))


def load(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        UserError: no such file, not a baseline, damaged, or of a format that this version does not know.
    """
    if not path.is_file():
        raise UserError(f"--baseline {path} does not exist; make it with --update --reason TEXT")
    try:
        plain = lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{path} is no baseline, or damaged: not readable as xz ({error})") from error
    line, _, body = plain.partition(b"\n")
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path} is no baseline, or damaged: its first line is not JSON") from error
    header = parse(Header, value, str(path))
    lost = [facts.ids for facts in header.protocols.values() if facts.ids not in header.ids]
    if lost:
        raise UserError(f"{path} is damaged: it lacks the question ids {lost[0]!r}")
    codes, start = {}, 0
    for key in _keys(header):
        facts = header.protocols[key[2]]
        block = np.frombuffer(body, dtype=np.uint8)[start : start + len(header.ids[facts.ids])]
        if len(block) != len(header.ids[facts.ids]) or (block >= len(facts.states)).any():
            raise UserError(f"{path} is damaged: the answers of {key[0]} on {key[2]} are cut short or out of range")
        codes[key] = block
        start += len(block)
    if start != len(body):
        raise UserError(f"{path} is damaged: it holds {len(body)} bytes of answers, expected {start}")
    return Baseline(header, codes)


def _keys(header: Header) -> list[tuple[str, int | None, str]]:
    """Name the blocks of bytes in their order: protocol by protocol, so that students who answer alike compress well."""
    return [(model.name, model.seed, name) for name in header.protocols for model in header.models if name in model.protocols]
