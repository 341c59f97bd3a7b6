"""What caches hold on disk: planned before it is spent, bounded by ``--cache-gb``, the least recently used deleted first.

How a stage becomes a cache (:class:`harness.plan.Stage`): ``cache=True`` and ``plans="module:function"``, a function
``(root, stage) -> Planned`` that imports no torch. Its outputs may then be deleted between any two stages that read them; they
are made again when something needs them, and what was made from them stays complete. Write large arrays through
:func:`harness.base.open_array`, which takes the space first: a memory map that meets a full disk kills the process.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import disk, store
from harness.base import UserError, remove
from harness.plan import Producers, Stage

GB = 1e9
_MORE = "Give more with --cache-gb, or leave it out for no bound"


@dataclass(frozen=True)
class Planned:
    """What a cache will take.

    Attributes:
        form: in what form, in a few words (``exact, float32``).
        bytes: on disk; None as long as what it reads is not there.
        why: how the form was chosen, in one line, where there was a choice.
    """

    form: str
    bytes: int | None
    why: str = ""


def lying(root: Path, name: str) -> int | None:
    """Return the bytes of the cache that the stage ``name`` made, None where it is not whole."""
    entry = store.read_entry(root, name)
    if entry is None or not entry.cache or not store.inspect(root, entry)[0]:
        return None
    return sum(output.size for output in entry.outputs.values())


@dataclass(frozen=True)
class Held:
    """A cache in the run folder: the stage that made it, its bytes, when it was last used, and its files."""

    stage: str
    bytes: int
    used: int
    files: tuple[Path, ...]


def planned(root: Path, stage: Stage) -> Planned:
    """Return what the cache ``stage`` will take.

    Raises:
        RuntimeError: when the stage does not say who knows it (a bug in the plan).
    """
    module, _, name = stage.plans.partition(":")
    if not name:
        raise RuntimeError(f"cache {stage.id} does not say who plans its size")
    found = getattr(importlib.import_module(module), name)(root, stage)
    if not isinstance(found, Planned):
        raise RuntimeError(f"{stage.plans} returned {type(found).__name__} for {stage.id}, no Planned")
    return found


def held(root: Path) -> list[Held]:
    """Return the caches that the run folder holds, those of earlier plans included, the least recently used first."""
    found = []
    for entry in store.entries(root):
        files = tuple(root / name for name in entry.outputs if (root / name).is_file()) if entry.cache else ()
        if files:
            used = store.entry_path(root, entry.stage).stat().st_mtime_ns
            found.append(Held(entry.stage, sum(file.stat().st_size for file in files), used, files))
    return sorted(found, key=lambda each: (each.used, each.stage))


def touch(root: Path, stage: Stage) -> None:
    """Record that the cache ``stage`` is used now."""
    os.utime(store.entry_path(root, stage.id))


def delete(cache: Held) -> None:
    """Delete a cache's files; its ledger entry stays."""
    for file in cache.files:
        remove(file)


class Keeper:
    """Keeps the caches of a run within their bound.

    Args:
        root: the run folder.
        stages: the plan.
        bound: bytes that all caches together may hold; None for no bound.
    """

    def __init__(self, root: Path, stages: Sequence[Stage], bound: int | None) -> None:
        self._root, self._stages, self._bound = root, stages, bound
        self._by_id = {stage.id: stage for stage in stages}
        producers = Producers(stages)
        self._reads = {s.id: {u.id for u in producers.upstream(s) if u.cache} for s in stages}
        self._own = {s.id: {s.id} if s.cache else set() for s in stages}

    def check(self, done: Collection[str]) -> None:
        """Refuse a plan in which a stage needs more at once than caches may hold.

        Args:
            done: ids of the stages with nothing to do.

        Raises:
            UserError: naming the stage, what it needs, and the bound.
        """
        if self._bound is None:
            return
        size = functools.cache(self._size)
        for stage in self._stages:
            names = sorted(self._reads[stage.id] | self._own[stage.id])
            if stage.id in done or not names:
                continue
            known = {name: found for name in names if (found := size(name)) is not None}
            if sum(known.values()) > self._bound:
                listed = ", ".join(f"{name} {found / GB:.3g}" for name, found in known.items())
                raise UserError(
                    f"stage {stage.id} needs caches of {sum(known.values()) / GB:.3g} GB at once ({listed}), and --cache-gb is"
                    f" {self._bound / GB:.3g}. {_MORE}"
                )

    def to_delete(self, job: Iterable[Stage], done: Collection[str], busy: Iterable[str]) -> list[Held] | None:
        """Return what has to be deleted before ``job`` can start, the least recently used and no longer needed first.

        Args:
            job: stages that start together.
            done: ids of the stages with nothing to do.
            busy: ids of the stages at work, whose caches stay, and which may be making some themselves.

        Returns:
            What lies where ``job`` will write comes first, whatever the bound: it is damaged or stale. None where the room
            cannot be made as long as ``busy`` stages work.

        Raises:
            RuntimeError: when a cache's size is not known though what it reads is there.
        """
        job, busy = list(job), list(busy)
        making = {name for stage in job for name in self._own[stage.id]}
        if not making:
            return []
        found = held(self._root)
        chosen = [cache for cache in found if cache.stage in making]
        if self._bound is None:
            return chosen
        coming = making | {name for stage in busy for name in self._own[stage]}
        there = [cache for cache in found if cache.stage not in coming]
        excess = sum(cache.bytes for cache in there) + sum(self._sure(name) for name in coming) - self._bound
        kept = {name for stage in busy for name in self._reads[stage]} | {n for s in job for n in self._reads[s.id]}
        needed = self.needed(done)
        for cache in sorted(there, key=lambda each: each.stage in needed):  # stable: each part by time of use
            if excess <= 0:
                break
            if cache.stage not in kept:
                chosen.append(cache)
                excess -= cache.bytes
        return chosen if excess <= 0 else None

    def surplus(self, done: Collection[str]) -> list[Held]:
        """Return what goes before anything starts because caches hold more than their bound: of those that nothing needs, the
        least recently used first. Those that are needed go when another takes their place."""
        if self._bound is None:
            return []
        found, needed = held(self._root), self.needed(done)
        excess, chosen = sum(cache.bytes for cache in found) - self._bound, []
        for cache in (each for each in found if each.stage not in needed):
            if excess <= 0:
                break
            chosen.append(cache)
            excess -= cache.bytes
        return chosen

    def price(self, job: Iterable[Stage], done: Collection[str], busy: Iterable[str]) -> int | None:
        """Return how many caches that are still needed the start of ``job`` would cost; None where it has to wait."""
        job = list(job)
        deleted = self.to_delete(job, done, busy)
        if deleted is None:
            return None
        if not deleted:
            return 0
        needed = self.needed(done) - {stage.id for stage in job}
        return sum(cache.stage in needed for cache in deleted)

    def needed(self, done: Collection[str]) -> set[str]:
        """Return the ids of the caches that stages which are not ``done`` read."""
        return {name for stage in self._stages if stage.id not in done for name in self._reads[stage.id]}

    def lacks(self, job: Iterable[Stage]) -> str | None:
        """Say in one line what of ``job``'s caches the disk has no room for; None where it has."""
        for stage in job:
            size, free = self._sure(stage.id) if stage.cache else 0, shutil.disk_usage(self._root).free
            if size > free:
                return disk.line(self._root, f"cache {stage.id}, which takes {_size(size)}")
        return None

    def use(self, stages: Iterable[Stage]) -> None:
        """Record that ``stages`` start, and so use the caches that they read."""
        for name in sorted({name for stage in stages for name in self._reads[stage.id]}):
            touch(self._root, self._by_id[name])

    def made(self, stage: Stage) -> None:
        """Look at the bound again after ``stage``.

        Raises:
            UserError: when caches hold more than they may: the stage made more than it had planned.
        """
        if self._bound is None or not stage.cache:
            return
        total = sum(cache.bytes for cache in held(self._root))
        if total > self._bound:
            raise UserError(
                f"caches hold {total / GB:.3g} GB after stage {stage.id}, which had planned {self._sure(stage.id) / GB:.3g};"
                f" --cache-gb is {self._bound / GB:.3g}. {_MORE}"
            )

    def _size(self, name: str) -> int | None:
        """Return a cache's bytes: as it lies there, else as planned."""
        there = lying(self._root, name)
        return planned(self._root, self._by_id[name]).bytes if there is None else there

    def _sure(self, name: str) -> int:
        size = planned(self._root, self._by_id[name]).bytes
        if size is None:
            raise RuntimeError(f"the size of cache {name} is not known though what it reads is there")
        return size


# ---- shown before it is spent ----------------------------------------------------------------------------------------------


def bound_of(cache_gb: float | None) -> int | None:
    """Return ``--cache-gb`` in bytes."""
    return None if cache_gb is None else int(cache_gb * GB)


def to_write(root: Path, stages: Sequence[Stage], done: Collection[str], bound: int | None) -> int:
    """Return the bytes that caches will still take, as far as that is known; never more than their bound leaves."""
    coming = sum(planned(root, s).bytes or 0 for s in stages if s.cache and s.id not in done)
    if bound is None:
        return coming
    return max(0, min(coming, bound - sum(cache.bytes for cache in held(root))))


def lines(root: Path, stages: Sequence[Stage], done: Collection[str], bound: int | None) -> list[str]:
    """Return what ``--dry-run`` says: a line for each cache of the plan, and one for their sum and bound."""
    there = {cache.stage: cache.bytes for cache in held(root)}
    found, total = [], 0
    for stage in stages:
        if not stage.cache:
            continue
        if stage.id in done:
            size = there.get(stage.id)
            found.append(f"cache {stage.label}: " + ("not there, not needed" if size is None else f"there, {_size(size)}"))
            total += size or 0
            continue
        coming = planned(root, stage)
        size = coming.bytes
        found.append(
            f"cache {stage.label}: {coming.form}, "
            + ("its size is known when what it reads is there" if size is None else f"{_size(size)} to write")
            + (f" ({coming.why})" if coming.why else "")
        )
        total += size or 0
    others = sum(size for name, size in there.items() if name not in {stage.id for stage in stages})
    if others:
        found.append(f"caches of other plans: {_size(others)}")
    if found:
        limit = "no bound (--cache-gb)" if bound is None else f"--cache-gb allows {_size(bound)} at once"
        found.append(f"caches: {_size(total + others)}; {limit}")
    return found


def _size(size: int) -> str:
    return f"{size / GB:.2f} GB" if size >= 0.1 * GB else f"{size / 1e6:.1f} MB"
