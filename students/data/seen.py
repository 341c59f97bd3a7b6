"""What indexing has to remember of every row, on disk: the ids and images seen so far, and which files were decoded."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from harness.base import UserError

_CACHE_KIB = 2048


class Stamp(NamedTuple):
    """A file as it was when it was decoded.

    Its bytes, the time of its last change (ns; 0 where it is not there), what is wrong with it, and its pixels.
    """

    size: int
    changed: int
    fault: str | None
    pixels: int = 0


def _open(path: Path, durable: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("PRAGMA temp_store = FILE")
    if not durable:  # a crash loses a scratch file that nobody reads again
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
    return connection


class _Table:
    """A database that closes itself."""

    connection: sqlite3.Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


class Seen(_Table):
    """Ids and images of the rows so far; a scratch file, made anew."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.connection = _open(path, durable=False)
        self.connection.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID")
        self.connection.execute(
            "CREATE TABLE images (number INTEGER PRIMARY KEY, key TEXT UNIQUE, size INTEGER, fault TEXT, pixels INTEGER)"
        )
        self.connection.execute("BEGIN")

    def unique(self, given: str) -> str:
        """Return the id itself at first, later ``id#2``, ``id#3``, ...: unique, and the same for the same rows in order."""
        name = given
        while not self._new(name):
            (times,) = self.connection.execute("SELECT times FROM ids WHERE id = ?", (given,)).fetchone()
            self.connection.execute("UPDATE ids SET times = ? WHERE id = ?", (times + 1, given))
            name = f"{given}#{times + 1}"
        return name

    def _new(self, name: str) -> bool:
        return self.connection.execute("INSERT OR IGNORE INTO ids VALUES (?, 1)", (name,)).rowcount == 1

    def image(self, key: str) -> None:
        """Remember an image that a row shows."""
        self.connection.execute("INSERT OR IGNORE INTO images (key) VALUES (?)", (key,))

    def images(self) -> int:
        """Count the distinct images."""
        (count,) = self.connection.execute("SELECT COUNT(*) FROM images").fetchone()
        return int(count)

    def chunks(self, size: int) -> Iterator[list[str]]:
        """Yield the distinct images, ``size`` at a time, in the order in which they were first shown."""
        last = 0
        while True:
            query = "SELECT number, key FROM images WHERE number > ? ORDER BY number LIMIT ?"
            found = self.connection.execute(query, (last, size)).fetchall()
            if not found:
                return
            last = found[-1][0]
            yield [key for _, key in found]

    def record(self, stamps: Mapping[str, Stamp]) -> None:
        """Keep what decoding said."""
        rows = [(stamp.size, stamp.fault, stamp.pixels, key) for key, stamp in stamps.items()]
        self.connection.executemany("UPDATE images SET size = ?, fault = ?, pixels = ? WHERE key = ?", rows)

    def faults(self, limit: int | None = None) -> list[tuple[str, str]]:
        """Return (key, what is wrong) of the first unreadable images."""
        query = "SELECT key, fault FROM images WHERE fault IS NOT NULL ORDER BY number LIMIT ?"
        return self.connection.execute(query, (-1 if limit is None else limit,)).fetchall()

    def unreadable(self) -> int:
        """Count the unreadable images."""
        (count,) = self.connection.execute("SELECT COUNT(*) FROM images WHERE fault IS NOT NULL").fetchone()
        return int(count)

    def pixels(self) -> int:
        """Count the pixels of the readable images."""
        (count,) = self.connection.execute("SELECT COALESCE(SUM(pixels), 0) FROM images WHERE fault IS NULL").fetchone()
        return int(count)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield (key, bytes) of the readable images in order."""
        yield from self.connection.execute("SELECT key, size FROM images WHERE fault IS NULL ORDER BY number")


class Checks(_Table):
    """Which image files were decoded, by absolute path: an interrupted check goes on where it was.

    An entry counts only for a file of the same size and time of change.

    Raises:
        UserError: for a damaged file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = "path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, fault TEXT, pixels INTEGER"
        try:
            self.connection = _open(path, durable=True)
            self.connection.execute(f"CREATE TABLE IF NOT EXISTS decoded ({columns}) WITHOUT ROWID")
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is damaged ({error}). Delete it and run the same command again") from error

    def known(self, paths: Sequence[str]) -> dict[str, Stamp]:
        """Return what is known of these files; at most some hundred at a time."""
        query = f"SELECT path, size, changed, fault, pixels FROM decoded WHERE path IN ({','.join('?' * len(paths))})"
        return {path: Stamp(*stamp) for path, *stamp in self.connection.execute(query, list(paths))}

    def add(self, stamps: Mapping[str, Stamp]) -> None:
        """Keep what decoding said, on disk when this returns."""
        self.connection.execute("BEGIN")
        rows = [(path, *stamp) for path, stamp in stamps.items()]
        self.connection.executemany("INSERT OR REPLACE INTO decoded VALUES (?, ?, ?, ?, ?)", rows)
        self.connection.execute("COMMIT")
