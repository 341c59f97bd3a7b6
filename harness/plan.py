"""The stages of a run, in order: what each reads and writes, and the digest that says whether it has to be done.

The digest of a stage covers its kind, its hand-raised ``STAGE_VERSION``, its configuration, and the *contents* of what it
reads: outputs of other stages as the ledger records them, and given weights. So a stage is known to be current only when
everything before it is, and an upstream stage that is repeated with the same result repeats nothing behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import store
from harness.base import digest
from harness.resources import Resources


@dataclass(frozen=True)
class Stage:
    """One unit of work that is done entirely or not at all.

    Attributes:
        id: its name, and the path of its ledger entry below ``stages/``.
        kind: groups stages of equal cost; a key of ``Preset.seconds``.
        run: ``module:function``, called in a worker with a :class:`harness.workers.Context`.
        version: the module's ``STAGE_VERSION``.
        config: JSON-able options; part of the digest.
        targets: files or folders it writes, relative to the run folder.
        reads: files or folders of earlier stages, relative to the run folder; their contents are part of the digest.
        given: name -> digest of inputs from outside the run folder; part of the digest.
        places: name -> where an input lies, absolute or relative to the run folder; not part of the digest.
        job: stages of one job run one after another in one worker, which keeps what they share in memory.
        resumes: whether it can go on from the partial output of an earlier attempt.
        cost: estimated seconds, for progress only.
        distributed: whether the processes of a launch compute it together; not part of the digest.
        resources: what it takes while it runs; not part of the digest.
        cache: its outputs may be deleted when space is short, and are made again when something needs them; what reads them
            stays complete meanwhile, because the ledger keeps their digests. Damaged ones are made again too.
        plans: of a cache, ``module:function``, called as ``function(root, stage)`` in the parent before anything is written;
            returns a :class:`harness.caching.Planned`. It must import no torch, and know the bytes once what it reads is there.
        uses: outputs of caches that save it work and change no result: it waits for them, and its digest does not know them.
        choice: what a cache chooses its form by (``cache_gb`` and the like). Not part of the digest: a form that was taken once
            is kept, whatever would be taken now.
    """

    id: str
    kind: str
    run: str
    version: int
    config: Mapping[str, Any]
    targets: tuple[str, ...]
    reads: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    job: str = ""
    resumes: bool = False
    cost: float = 1.0
    distributed: bool = False
    resources: Resources = field(default_factory=Resources)
    cache: bool = False
    plans: str = ""
    uses: tuple[str, ...] = ()
    choice: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name shown to people."""
        return self.id.replace("/", " ")


class Producers:
    """Which stage of a plan writes what: an index, made once for a plan.

    Args:
        stages: the plan.

    Raises:
        RuntimeError: for two stages with one name, which would never both be done.
    """

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._number: dict[str, int] = {}
        self._writers: dict[str, Stage] = {}
        for stage in stages:
            if stage.id in self._number:
                raise RuntimeError(f"the plan has two stages {stage.id}")
            self._number[stage.id] = len(self._number)
            for target in stage.targets:
                self._writers.setdefault(target, stage)

    def of(self, path: str) -> Stage:
        """Return the stage that writes ``path`` or a folder above it.

        Raises:
            RuntimeError: when there is none.
        """
        place = path
        while place:
            if place in self._writers:
                return self._writers[place]
            place = place.rpartition("/")[0]
        raise RuntimeError(f"no stage writes {path}")

    def upstream(self, stage: Stage, uses: bool = True) -> list[Stage]:
        """Return the stages whose outputs ``stage`` reads, and those that it only ``uses`` too, each once, in plan order."""
        found = {s.id: s for s in map(self.of, (*stage.reads, *(stage.uses if uses else ())))}
        return sorted(found.values(), key=lambda s: self._number[s.id])


def upstream(stage: Stage, stages: Iterable[Stage], uses: bool = True) -> list[Stage]:
    """As :meth:`Producers.upstream`, of one stage: whoever asks about all of them makes the index once."""
    return Producers(stages).upstream(stage, uses)


def stage_digest(
    root: Path, stage: Stage, producers: Producers, ledger: Callable[[str], store.Entry | None] | None = None
) -> str:
    """Return the digest of ``stage``; everything it reads must be complete.

    Args:
        root: the run folder.
        stage: of the plan.
        producers: of the plan.
        ledger: returns a stage's ledger entry, for who has read them; None to read them here.

    Raises:
        RuntimeError: when a stage that it reads from has no ledger entry, or wrote nothing at that path.
    """
    read = ledger or functools.cache(functools.partial(store.read_entry, root))
    inputs: dict[str, str] = {}
    for path in stage.reads:
        entry = read(producers.of(path).id)
        found = store.select(entry, path) if entry is not None else None
        if found is None:
            raise RuntimeError(f"stage {stage.id} reads {path}, which is not there yet")
        inputs[path] = found
    return digest(
        {
            "kind": stage.kind,
            "version": stage.version,
            "config": dict(stage.config),
            "given": dict(stage.given),
            "inputs": inputs,
        }
    )


def is_current(root: Path, stage: Stage, wanted: str) -> bool:
    """Say whether ``stage`` is complete with the digest ``wanted``.

    Raises:
        UserError: when it is, but one of its files was changed since; a cache is then made again.
    """
    entry = store.read_entry(root, stage.id)
    if entry is None or entry.digest != wanted:
        return False
    return store.inspect(root, entry)[0] if stage.cache else store.is_complete(root, entry)


@dataclass(frozen=True)
class Survey:
    """What a run folder holds of a plan.

    Attributes:
        done: ids of the stages with nothing to do: complete, or a cache that is not there and that nothing left to do needs.
        deleted: ids of the caches whose digest is right and whose files are gone or damaged, needed or not.
        damaged: one line for each cache that has to be made again because a file of it is cut off or changed.
    """

    done: set[str]
    deleted: set[str]
    damaged: tuple[str, ...] = ()


def look(root: Path, stages: Sequence[Stage]) -> Survey:
    """Compare a run folder with a plan; writes nothing. ``stages`` are in an order in which each comes after what it reads.

    Raises:
        UserError: when a file of a complete stage that is no cache was changed since.
    """
    producers = Producers(stages)
    ledger = functools.cache(functools.partial(store.read_entry, root))
    known: set[str] = set()  # their outputs' digests are known, so that what reads them can be looked at
    deleted: dict[str, str | None] = {}
    for stage in stages:
        if not all(s.id in known for s in producers.upstream(stage, uses=False)):
            continue
        entry = ledger(stage.id)
        if entry is None or entry.digest != stage_digest(root, stage, producers, ledger):
            continue
        if stage.cache:
            whole, why = store.inspect(root, entry)
            if not whole:
                deleted[stage.id] = why
            known.add(stage.id)
        elif store.is_complete(root, entry):
            known.add(stage.id)
    helping = {producers.of(path).id for stage in stages for path in stage.uses} - known
    todo = {stage.id for stage in stages} - known - helping
    users: dict[str, set[str]] = {}
    for stage in stages:
        for each in producers.upstream(stage):
            users.setdefault(each.id, set()).add(stage.id)
    for stage in reversed(stages):
        if (stage.id in deleted or stage.id in helping) and not users.get(stage.id, set()).isdisjoint(todo):
            todo.add(stage.id)
    lines = tuple(f"{why}; the cache is made again" for name, why in deleted.items() if why is not None and name in todo)
    return Survey({stage.id for stage in stages} - todo, set(deleted), lines)


def survey(root: Path, stages: Sequence[Stage]) -> set[str]:
    """Return the ids of the stages with nothing to do; see :func:`look`."""
    return look(root, stages).done
