"""The run folder: whose it is, who may write into it, and the ledger that says which stages are complete.

A stage works in ``TARGET.partial`` beside each of its targets. :func:`commit` renames them and only then writes the ledger
entry ``stages/ID.json``; :func:`begin` removes that entry first. So a process killed at any instruction leaves either no entry
(the stage is done again) or an entry whose outputs are complete, and nothing half-written is ever taken for a result.
Outputs of a cache may be deleted later; their entry stays, so that what was made from them stays complete.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from harness.base import Strict, UserError, digest, digest_file, parse, read_json, remove, write_json

LOCK = ".lock"
HOLDER = ".holder.json"
MANIFEST = "manifest.json"
#: What a run killed before its manifest was written may have left; a folder that holds only these is still empty to us.
_BOOKKEEPING = (LOCK, HOLDER, f".{HOLDER}.", f".{MANIFEST}.", ".worker")
#: A worker notices its parent's death within milliseconds; a run that starts over one waits this long for it to be gone.
_ORPHAN_SECONDS = 30.0


class Output(Strict):
    """One file that a stage wrote: its SHA-256 (hex), its size in bytes, and when it was last changed, by its file system.

    A file of the same size and time is taken to be the one that was written; any other is read and hashed.
    """

    sha256: str
    size: int
    mtime_ns: int | None = None


class Entry(Strict):
    """A ledger entry. ``outputs`` maps paths relative to the run folder; ``digest`` is the stage's when it ran; the outputs of
    a ``cache`` may be gone."""

    stage: str
    digest: str
    version: int
    outputs: dict[str, Output]
    seconds: float
    cache: bool = False


@dataclass(frozen=True)
class Holder:
    """The process that holds a run folder."""

    pid: int
    host: str
    since: str


def partial(root: Path, target: str) -> Path:
    """Return the path a stage writes to while ``target`` is incomplete."""
    return root / f"{target}.partial"


def entry_path(root: Path, stage: str) -> Path:
    """Return the path of a stage's ledger entry."""
    return root / "stages" / f"{stage}.json"


def read_entry(root: Path, stage: str) -> Entry | None:
    """Return the ledger entry of ``stage``, or None where it has none; a damaged entry is a :class:`UserError`."""
    path = entry_path(root, stage)
    return parse(Entry, read_json(path), str(path)) if path.is_file() else None


def entries(root: Path) -> list[Entry]:
    """Return every ledger entry of the run folder, sorted by stage."""
    folder = root / "stages"
    return [parse(Entry, read_json(p), str(p)) for p in sorted(folder.rglob("*.json"))] if folder.is_dir() else []


def select(entry: Entry, path: str) -> str | None:
    """Return the digest of the outputs of ``entry`` at or below ``path``, or None where it wrote nothing there."""
    found = {k: v.sha256 for k, v in entry.outputs.items() if k == path or k.startswith(f"{path}/")}
    return digest(found) if found else None


def is_complete(root: Path, entry: Entry) -> bool:
    """Say whether every output of ``entry`` is there and is what the stage wrote.

    A missing output means False (delete a file to have its stage done again).

    Raises:
        UserError: for an output that is there but changed: a truncated or edited file must not be built on, nor silently
            replaced, because someone may have edited it on purpose.
    """
    whole, why = inspect(root, entry)
    if why is not None:
        raise UserError(f"{why}. Delete it and run the same command again, which repeats only stage {entry.stage}")
    return whole


def inspect(root: Path, entry: Entry) -> tuple[bool, str | None]:
    """Return whether every output of ``entry`` is there and is what the stage wrote, and which one is damaged, if one is.

    A file whose size and time of change are those recorded is not read again.
    """
    stats: dict[str, os.stat_result] = {}
    for name in entry.outputs:
        if not (root / name).is_file():
            return False, None
        stats[name] = (root / name).stat()
    for name, output in entry.outputs.items():
        found = stats[name]
        if found.st_size != output.size:
            return False, f"{root / name} is damaged: it has {found.st_size} bytes, {output.size} were written"
        if found.st_mtime_ns != output.mtime_ns and digest_file(root / name) != output.sha256:
            return False, f"{root / name} is damaged: its SHA-256 is not the one recorded when it was written"
    return True, None


def renew_times(root: Path, entry: Entry) -> None:
    """Record when the outputs of a complete ``entry`` were last changed, if that differs: of a run folder that was copied."""
    outputs = {k: v.model_copy(update={"mtime_ns": (root / k).stat().st_mtime_ns}) for k, v in entry.outputs.items()}
    if outputs != entry.outputs:
        write_json(entry_path(root, entry.stage), entry.model_copy(update={"outputs": outputs}).model_dump())


def forget(root: Path, stage: str) -> None:
    """Drop the ledger entry of ``stage``: the next run does it again."""
    remove(entry_path(root, stage))


def begin(root: Path, stage: str, stage_digest: str, targets: Sequence[str], resumes: bool) -> None:
    """Open ``stage`` for work: forget its ledger entry and clear what an earlier attempt left.

    A stage that ``resumes`` keeps the partial folder of an attempt with the same digest; any other starts from nothing. A cache
    that is made again keeps its entry: what reads it stays complete, and its files are looked at before anyone uses them.
    """
    before = read_entry(root, stage)
    if before is None or not before.cache or before.digest != stage_digest:
        forget(root, stage)
    marker = entry_path(root, stage).with_suffix(".begun")
    same = marker.is_file() and marker.read_text(encoding="utf-8") == stage_digest
    for target in targets:
        path = partial(root, target)
        if not (same and resumes):
            remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(stage_digest, encoding="utf-8")  # written last: a torn marker cannot equal a digest


def clear(root: Path, targets: Sequence[str]) -> None:
    """Delete what an attempt at a stage left of its targets."""
    for target in targets:
        remove(partial(root, target))


def commit(
    root: Path, stage: str, stage_digest: str, version: int, targets: Sequence[str], seconds: float, cache: bool = False
) -> Entry:
    """Move the partial targets of ``stage`` into place and write its ledger entry.

    Raises:
        RuntimeError: when the stage did not write one of its targets (a bug in the stage, not in the input).
    """
    outputs: dict[str, Output] = {}
    for target in targets:
        source = partial(root, target)
        files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        if not files or not files[0].is_file():
            raise RuntimeError(f"stage {stage} wrote nothing at {source}")
        for file in files:
            name = file.relative_to(source)
            key = (Path(target) / name).as_posix() if source.is_dir() else target
            made = file.stat()
            outputs[key] = Output(sha256=digest_file(file), size=made.st_size, mtime_ns=made.st_mtime_ns)
    for target in targets:
        destination = root / target
        if destination.is_dir():  # a rename cannot replace a folder that holds files
            remove(destination)
        partial(root, target).replace(destination)
    entry = Entry(stage=stage, digest=stage_digest, version=version, outputs=outputs, seconds=round(seconds, 3), cache=cache)
    write_json(entry_path(root, stage), entry.model_dump())
    remove(entry_path(root, stage).with_suffix(".begun"))
    return entry


# ---- whose folder it is ----------------------------------------------------------------------------------------------------


def check_folder(root: Path, preset: str) -> None:
    """Make sure that ``root`` is new, empty, or a run of ``preset``; reads only.

    Raises:
        UserError: when it is a file, holds something that is not a run, or holds a run of another preset.
    """
    if not root.exists():
        return
    if not root.is_dir():
        raise UserError(f"--out {root} is a file; name a folder")
    manifest = root / MANIFEST
    if manifest.is_file():
        found = read_preset(root)
        if found != preset:
            raise UserError(f"{root} holds a run of preset {found!r}, not {preset!r}; name another folder with --out")
        return
    if entries(root):  # a run whose manifest was lost: the digests decide what of it can be used
        return
    others = [p.name for p in sorted(root.iterdir()) if not p.name.startswith(_BOOKKEEPING)]
    if others:
        raise UserError(f"{root} is not a run folder: it holds {others[0]!r} and no {MANIFEST}; name another folder with --out")


def read_preset(root: Path) -> str:
    """Return the name of the preset that the run folder ``root`` holds.

    Raises:
        UserError: when ``root`` is not a run folder or its manifest is damaged.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise UserError(f"{root} is not a run folder: it has no {MANIFEST}")
    manifest = read_json(path)
    preset = manifest.get("preset") if isinstance(manifest, Mapping) else None
    name = preset.get("name") if isinstance(preset, Mapping) else None
    if not isinstance(name, str):
        raise UserError(f"{path} is damaged: field preset.name is missing. Remove it and run the same command again")
    return name


@contextlib.contextmanager
def locked(root: Path, preset: str) -> Iterator[None]:
    """Hold ``root`` for one process: create it if it is new, wait for a dead run's workers, release it at the end.

    Raises:
        UserError: when another process holds it (its id is named), or the folder is not ours (:func:`check_folder`).
    """
    check_folder(root, preset)
    root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(root / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"{root} is in use by {_holder(root)}; wait for it or stop it, then run this again") from error
    try:
        check_folder(root, preset)  # again: it may have changed between the look and the lock
        holder = Holder(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
        write_json(root / HOLDER, holder.__dict__)
        for path in sorted(root.glob(".worker*.lock")):
            _await_orphan(path)
        for path in root.rglob(".*.tmp"):  # of atomic writes that were killed
            remove(path)
        yield
    finally:
        remove(root / HOLDER)
        lock.release()


def worker_lock(root: Path, number: int) -> filelock.BaseFileLock:
    """Return the lock that worker ``number`` holds while it lives, so that a later run can tell when it is gone."""
    return filelock.FileLock(root / f".worker{number}.lock")


def _await_orphan(path: Path) -> None:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=_ORPHAN_SECONDS)
    except filelock.Timeout as error:
        raise UserError(f"{path} is held by a worker of an earlier run that is still alive; stop it first") from error
    lock.release()


def _holder(root: Path) -> str:
    path = root / HOLDER
    if not path.is_file():
        return "another process that is just starting or ending"
    found = read_json(path)
    return f"process {found['pid']} on {found['host']} since {found['since']}"
