"""Makes a corpus of rows that come one at a time: unique ids, every image decoded once, bad rows left out and named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.base import UserError, remove
from students.data import corpus as corpora
from students.data import images
from students.data.conversations import Conversation
from students.data.seen import Checks, Seen, Stamp

#: Images decoded between two looks at the database, and rows read between two reports.
_CHUNK = 256
#: How many rows or images a message or a remark names.
_NAMED = 5
#: Of a progress of 1000: how much reading the rows is, where images are decoded afterwards.
_READING, _ALL = 100, 1000


@dataclass(frozen=True)
class Found:
    """A row of a source.

    Attributes:
        label: what messages call it.
        row: None where it is left out; its id need not be unique yet.
        skipped: why it is left out.
        changed: what was unusual about it.
        read: how much of the source is read by now, in the unit of :class:`Source`'s size.
    """

    label: str
    row: Conversation | None = None
    skipped: str = ""
    changed: tuple[str, ...] = ()
    read: int = 0


@dataclass(frozen=True)
class Source:
    """Where a corpus comes from.

    Attributes:
        name, format: of the corpus, as :class:`students.data.corpus.Facts` has them.
        rows: read once.
        size: what the last row's ``read`` comes near to, for progress.
        expected: how many rows there must be, those left out included; None: not checked.
        where: for messages: the file or data set.
        image_root: where the images lie.
    """

    name: str
    format: str
    rows: Iterable[Found]
    size: int
    expected: int | None
    where: str
    image_root: Path


@dataclass
class _Remarks:
    """Counts rows by what was said of them, and keeps the first ones' labels."""

    found: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, what: str, label: str) -> None:
        count, first = self.found.get(what, (0, []))
        self.found[what] = (count + 1, first if len(first) >= _NAMED else [*first, label])

    def facts(self) -> dict[str, corpora.Remark]:
        ordered = sorted(self.found.items())
        return {what: corpora.Remark(rows=count, first=tuple(first)) for what, (count, first) in ordered}


def index(
    source: Source,
    folder: Path,
    checks: Path,
    allowed: int = 0,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
) -> corpora.Facts:
    """Write a corpus.

    Args:
        source: the rows and where their images are.
        folder: of the corpus.
        checks: a file outside of it that keeps which images were decoded, so that another attempt does not decode them again;
            the caller removes it when the corpus is safe.
        allowed: how many unreadable images may be left out, with the rows that show them.
        threads: that decode images.
        progress: called with (done, total).

    Returns:
        What ``corpus.json`` says.

    Raises:
        UserError: for a source that cannot be read, has another number of rows than expected, no usable row, or more unreadable
            images than allowed.
    """
    skipped, changed = _Remarks(), _Remarks()
    scratch = folder / "seen.sqlite3"
    folder.mkdir(parents=True, exist_ok=True)
    with Seen(scratch) as seen:
        count, written = _read(source, folder, seen, skipped, changed, progress)
        _check(source, seen, checks, threads, progress)
        unreadable = seen.unreadable()
        if unreadable > allowed:
            raise UserError(_too_many(source, unreadable, seen.faults(_NAMED), allowed))
        if unreadable:
            written = _without(source.name, folder, {key for key, _ in seen.faults()}, skipped)
        if not written.rows:
            raise UserError(f"corpus {source.name!r}: {source.where} has no row that can be learned from{_why(skipped)}")
        facts = corpora.Facts(
            name=source.name,
            format=source.format,
            digest=_digest(folder, seen),
            source_rows=count,
            rows=written.rows,
            rows_with_image=written.rows_with_image,
            images=seen.images() - unreadable,
            unreadable=tuple(corpora.Unreadable(key=key, reason=reason) for key, reason in seen.faults()),
            skipped=skipped.facts(),
            changed=changed.facts(),
            sizes=corpora.Sizes(text=written.bytes, turns=written.turns, shown=written.shown, pixels=3 * seen.pixels()),
        )
    scratch.unlink()
    corpora.finish(folder, facts)
    progress(_ALL, _ALL)
    return facts


def _read(
    source: Source, folder: Path, seen: Seen, skipped: _Remarks, changed: _Remarks, progress: Callable[[int, int], None]
) -> tuple[int, corpora.IndexWriter]:
    """Write the rows; return how many the source has, and the closed writer."""
    count = 0
    with corpora.IndexWriter(folder, source.name) as writer:
        for count, found in enumerate(source.rows, start=1):
            if found.row is None:
                skipped.add(found.skipped, found.label)
            else:
                name = seen.unique(found.row.id)
                writer.add(replace(found.row, id=name))
                for key in found.row.images:
                    seen.image(key)
                for what in found.changed:
                    changed.add(what, name)
            if count % _CHUNK == 0:
                progress(min(_READING, _READING * found.read // max(1, source.size)), _ALL)
    if source.expected is not None and count != source.expected:
        raise UserError(
            f"corpus {source.name!r}: {source.where} has {count} rows, expected {source.expected}: half a download, or other"
            " data than the preset's (field rows)"
        )
    return count, writer


def _check(source: Source, seen: Seen, checks: Path, threads: int, progress: Callable[[int, int], None]) -> None:
    """Decode every distinct image, except those that an earlier attempt decoded and that did not change since."""
    total, done = seen.images(), 0
    if total and not source.image_root.is_dir():
        raise UserError(f"corpus {source.name!r}: the image folder {source.image_root} does not exist")
    with Checks(checks) as known, ThreadPoolExecutor(max_workers=threads) as pool:
        for keys in seen.chunks(_CHUNK):
            paths = [str((source.image_root / key).absolute()) for key in keys]
            before = known.known(paths)
            stamps = dict(zip(paths, pool.map(lambda path, old=before: _stamp(path, old.get(path)), paths), strict=True))
            known.add({path: stamp for path, stamp in stamps.items() if stamp != before.get(path)})
            seen.record({key: stamps[path] for key, path in zip(keys, paths, strict=True)})
            done += len(keys)
            progress(_READING + (_ALL - _READING) * done // total, _ALL)


def _stamp(path: str, before: Stamp | None) -> Stamp:
    """Decode a file, unless it is as it was."""
    try:
        now = Path(path).stat()
    except OSError as error:
        return Stamp(0, 0, images.reason(Path(path), error))
    if before is not None and (before.size, before.changed) == (now.st_size, now.st_mtime_ns):
        return before
    return Stamp(now.st_size, now.st_mtime_ns, *images.fault(Path(path)))


def _too_many(source: Source, count: int, first: list[tuple[str, str]], allowed: int) -> str:
    named = "; ".join(f"{key} {reason}" for key, reason in first)
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return (
        f"corpus {source.name!r}: {count} of its images cannot be read (allowed: {allowed}), in {source.image_root}:"
        f" {named}{more}. Repair them, or leave them and their rows out with --skip-unreadable {count}"
    )


def _why(skipped: _Remarks) -> str:
    found = "; ".join(f"{remark.rows} row(s): {what}" for what, remark in skipped.facts().items())
    return f" ({found})" if found else ""


def _without(name: str, folder: Path, keys: set[str], skipped: _Remarks) -> corpora.IndexWriter:
    """Write the rows again, without those that show one of these images."""
    again = folder / "again"
    with corpora.IndexWriter(again, name) as writer:
        for conversation in corpora.read_lines(folder, name):
            if keys.isdisjoint(conversation.images):
                writer.add(conversation)
            else:
                skipped.add("shows an unreadable image", conversation.id)
    for path in again.iterdir():
        path.replace(folder / path.name)
    remove(again)
    return writer


def _digest(folder: Path, seen: Seen) -> str:
    """Return the digest of the rows and of the names and sizes of their images."""
    result = hashlib.sha256()
    with (folder / corpora.ROWS).open("rb") as file:
        while chunk := file.read(1 << 20):
            result.update(chunk)
    for key, size in seen.sizes():
        result.update(f"\0{key}\0{size}".encode())
    return result.hexdigest()
