"""Protocols: a benchmark made exact. Each is one YAML file in ``tasks/protocols/``, found by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pydantic

from harness.base import Strict, UserError, digest, read_yaml, unknown
from tasks import aggregate, pins, rules, sources
from tasks.questions import QuestionSet

FOLDER = Path(__file__).parent / "protocols"


class Data(Strict):
    """Which questions.

    Attributes:
        source: a module of ``tasks/sources``.
        split: the source's split that is evaluated.
        revision: of the published data set; null for embedded data.
        rows: expected number of questions; null = not checked.
        digest: expected content digest of the question set; null = not checked.
        options: handed to the source's ``load``.
    """

    source: str
    split: str
    revision: str | None = None
    rows: int | None = pydantic.Field(default=None, gt=0)
    digest: str | None = None
    options: Mapping[str, Any] = {}


class Dataset(Strict):
    """Where the published questions are.

    Attributes:
        id, config, split: on the Hugging Face hub.
        revision: commit of the hub's data set; null where no public source states one. Then, and for data from a folder, row
            count and content digest are recorded at the first load, and a later load that differs is an error
            (:mod:`tasks.pins`).
        source_of_revision: who states it; null exactly where ``revision`` is.
        original: the same questions in their authors' own files, with the revision of those, for offline use.
    """

    id: str = pydantic.Field(pattern=r"^[\w.\-]+/[\w.\-]+$")
    config: str | None
    split: str
    revision: str | None
    source_of_revision: str | None
    original: str | None = None

    @pydantic.model_validator(mode="after")
    def _sourced(self) -> Dataset:
        if (self.revision is None) != (self.source_of_revision is None):
            raise ValueError("revision and source_of_revision go together: a revision needs its public source")
        return self


class Generation(Strict):
    """Decoding: greedy, at most ``max_new_tokens``, cut at the first of ``until``."""

    max_new_tokens: int = pydantic.Field(gt=0)
    until: tuple[str, ...] = ()
    do_sample: Literal[False] = False


class Protocol(Strict):
    """One evaluation, exactly.

    Attributes:
        name: ``benchmark@protocol``, also the file's name.
        version: raised by hand whenever scores stop being comparable.
        benchmark: the word that ``--tasks`` takes and that the source is asked for.
        title, description: for tables and captions.
        scorer: ``lmms``: prompt, parser and metric are lmms-eval's own code; ``published``: small functions in
            ``tasks/protocols/*.py`` that follow a published evaluation (no torch, no lmms-eval).
        dataset: where the published questions are; null for embedded data.
        sources: where the protocol is published: one line each.
        data: which questions.
        keep: which of the data set's rows count, a rule ``module.function`` of ``tasks/protocols``: ``(doc, image) -> bool``;
            null = all. The others are known but left out.
        task: lmms-eval's packaged task YAML (relative to ``lmms_eval/tasks``) whose prompt, parser and metric code runs.
        columns: columns of a question's ``doc`` that this code reads; a missing one is an error, not an empty string.
        prompt: how prompts are built: a key of ``tasks.bridge.PROMPTS``, or a rule ``(doc) -> str``.
        parser: how a reply is read: a key of ``tasks.parsers.PARSERS`` (what is done to it before lmms-eval reads it), or a
            rule ``(reply, doc) -> (prediction, whether the reply named a valid answer)``.
        generation: decoding.
        score: the score 0..1 of one question: a key of ``tasks.parsers.READERS``, or a rule ``(prediction, doc) -> float``.
        metrics: lmms-eval's own metrics whose sum, times ``scale``, must equal ``aggregation``'s number; empty where the
            protocol defines a number that lmms-eval does not compute.
        scale: see ``metrics``.
        aggregation: from per-question scores to the number, a name in ``tasks.aggregate``.
        cluster: what a cluster is, in words (image, question group, pair).
        unit, range, direction: of the number.
        chance: expected value of a uniformly random valid answer, in the unit; null where answers are open-ended, and the
            best constant answer (:func:`tasks.constant_level`) is then the floor.
        official: whether numbers may be compared with published ones.
    """

    name: str = pydantic.Field(pattern=r"^[a-z0-9_]+@[a-z0-9_.\-]+$")
    version: int = pydantic.Field(gt=0)
    benchmark: str
    title: str
    description: str
    scorer: Literal["lmms", "published"] = "lmms"
    dataset: Dataset | None = None
    sources: tuple[str, ...] = ()
    data: Data
    keep: str | None = None
    task: str | None = None
    columns: tuple[str, ...]
    prompt: str
    parser: str
    generation: Generation
    score: str
    metrics: tuple[str, ...] = ()
    scale: float = 1.0
    aggregation: str
    cluster: str
    unit: Literal["percent", "points"]
    range: tuple[float, float]
    direction: Literal["higher"]
    chance: float | None
    official: bool

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Protocol:
        if (self.scorer == "lmms") != (self.task is not None):
            raise ValueError("scorer lmms names lmms-eval's task file in 'task', scorer published has none")
        if self.scorer == "published" and (self.metrics or not self.sources or self.dataset is None):
            raise ValueError("scorer published names its sources and its dataset, and none of lmms-eval's metrics")
        if self.official != (self.dataset is not None) and self.data.source == "published":
            raise ValueError("an official protocol names its dataset, and only an official one does")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _given(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not given, so that a new optional field changes no digest of a protocol without it."""
        facts: dict[str, Any] = handler(self)
        unset = {"scorer": "lmms", "dataset": None, "sources": (), "keep": None}
        return {key: value for key, value in facts.items() if key not in unset or getattr(self, key) != unset[key]}

    @property
    def replies_key(self) -> str:
        """Digest of all that shapes a reply: protocols with equal keys share one generation."""
        facts = self.model_dump(mode="json", include={"benchmark", "data", "task", "prompt", "generation", "keep"})
        return digest(facts)


def names() -> list[str]:
    """Return the names of all protocols: the YAML files in ``tasks/protocols``."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def protocol(name: str) -> Protocol:
    """Return the protocol called ``name``.

    Raises:
        UnknownName: for an unknown name.
        UserError: for a file that breaks the schema or names an unknown source or aggregation.
    """
    if name not in names():
        raise unknown("protocol", name, names())
    path = FOLDER / f"{name}.yaml"
    found = read_yaml(path, Protocol)
    if found.name != name or found.name.split("@")[0] != found.benchmark:
        raise UserError(f"{path}: name is {found.name!r} and benchmark {found.benchmark!r}; the file name says {name!r}")
    if found.data.source not in sources.names():
        raise unknown("source", found.data.source, sources.names())
    if found.aggregation not in aggregate.names():
        raise unknown("aggregation", found.aggregation, aggregate.names())
    named = {"keep": found.keep} if found.keep is not None else {}
    if found.scorer == "published":
        named |= {"prompt": found.prompt, "parser": found.parser, "score": found.score}
    for kind, rule in named.items():
        rules.rule(kind, rule)  # raises for an unknown one
    return found


def hint(protocol: Protocol, rows: int) -> str:
    """Return "; NAME expects ROWS" where other protocols of the benchmark, or another of its releases, hold so many rows."""
    others = [name for name in names() if name.split("@")[0] == protocol.benchmark and name != protocol.name]
    fitting = [name for name in others if read_yaml(FOLDER / f"{name}.yaml", Protocol).data.rows == rows]
    return f"; {', '.join(fitting)} expect(s) {rows}" if fitting else ""


def load(
    protocol: Protocol,
    data_root: str | Path | None = None,
    limit: int | None = None,
    split: str | None = None,
    options: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> QuestionSet:
    """Return the protocol's questions.

    Args:
        protocol: what to load.
        data_root: folder with published data, handed to sources that read one.
        limit: keep the first ``limit`` whole clusters.
        split: another split of the same source (``train``, ``dev``); the expected rows and digest, and the rules of the
            aggregation, are those of the protocol's own split, so they are not checked then.
        options: added to the protocol's source options; only together with ``split``.
        partial: the data may hold fewer or more rows than the protocol expects; nothing is pinned then.

    Raises:
        UserError: when rows or digest differ from what the protocol expects or from the first load (:mod:`tasks.pins`), ids
            repeat, an image is missing, or the clusters do not fit the aggregation (a broken MME pair), all before anything
            is generated.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; allowed: 1 or more clusters")
    own = split is None or split == protocol.data.split
    if own and options:
        raise UserError(f"{protocol.name}: options ({', '.join(options)}) would change the protocol's own questions")
    chosen = {**protocol.data.options, **(options or {})}
    if data_root is not None:
        chosen["data_root"] = str(data_root)
    if protocol.dataset is not None:
        chosen |= {"name": protocol.name, "dataset": protocol.dataset.model_dump(), "keep": protocol.keep}
    questions = sources.load(protocol.data.source, protocol.benchmark, split or protocol.data.split, **chosen)
    if own and not partial and protocol.data.rows is not None and len(questions.questions) != protocol.data.rows:
        count = len(questions.questions)
        raise UserError(
            f"{protocol.name}: the data hold {count} questions, expected {protocol.data.rows}{hint(protocol, count)}"
        )
    pinned = protocol.dataset is not None and (data_root is not None or protocol.dataset.revision is None)
    if own and not partial and protocol.dataset is not None and pinned:
        pins.check(protocol.name, len(questions.questions), questions.digest, str(data_root or protocol.dataset.id))
    if own and protocol.data.digest is not None and questions.digest != protocol.data.digest:
        raise UserError(
            f"{protocol.name}: the data's digest is {questions.digest}, expected {protocol.data.digest}: "
            "these are other questions than the protocol's, so scores would not be comparable"
        )
    if limit is not None:
        questions = questions.limited(limit)
    check(protocol, questions, scored=own)
    return questions


def check(protocol: Protocol, questions: QuestionSet, scored: bool = True) -> None:
    """Raise :class:`UserError` where ``questions`` cannot be prompted (or, with ``scored``, aggregated) under ``protocol``."""
    if not questions.questions:
        raise UserError(f"{protocol.name}: there are no questions")
    seen: set[str] = set()
    for question in questions.questions:
        if question.id in seen:
            raise UserError(f"{protocol.name}: question id {question.id!r} occurs twice")
        seen.add(question.id)
        missing = [name for name in protocol.columns if name not in question.doc]
        if missing:
            raise UserError(f"{protocol.name}: question {question.id!r} lacks the column(s) {', '.join(missing)}")
        if question.image is not None and question.image not in questions.images:
            raise UserError(f"{protocol.name}: question {question.id!r} shows the image {question.image!r}, which is not there")
    if scored:
        aggregate.cluster_sums(frame(questions), protocol.aggregation)


def frame(questions: QuestionSet) -> pd.DataFrame:
    """Return the questions as unanswered rows (score 0, no prediction) in the columns that aggregations read."""
    rows = [(q.id, q.cluster, q.group, q.answer, "", 0.0) for q in questions.questions]
    return pd.DataFrame(rows, columns=["id", "cluster", "group", "gold", "prediction", "score"])
