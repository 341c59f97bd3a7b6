"""Where a run's models come from: given (with the digest of their files), made by the run, or put together from parts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from harness.base import UserError, digest_file, digest_folder
from harness.config import Models, Train, model_path
from harness.real import Assemble
from harness.stages import models as made_models

#: The digest of a model that is not on this machine, in a plan that is only shown.
ABSENT = "not on this machine"
ROLES = ("tower", "teacher", "base")


@dataclass(frozen=True)
class Absent:
    """What is not on this machine: model sources (paths or ids), names of corpora, benchmarks."""

    models: frozenset[str] = frozenset()
    corpora: frozenset[str] = frozenset()
    benchmarks: frozenset[str] = frozenset()


NOTHING_ABSENT = Absent()


class Sources:
    """Places and digests of the models of one plan.

    Args:
        models: given, trained or assembled.
        absent: what is known to be missing, for a plan that is only shown; everything else must be there.
    """

    def __init__(self, models: Models, absent: Absent = NOTHING_ABSENT) -> None:
        self.models = models
        self._absent = absent.models
        self._digests: dict[str, str] = {}

    def of(self, role: str) -> str | Train | Assemble | None:
        """Return where the model of a role, or an external one's name, comes from."""
        source: str | Train | Assemble | None = self.models.external.get(role) or getattr(self.models, role)
        return source

    def given(self) -> dict[str, str]:
        """Return the digests of the given models, by role or name, and of the parts of assembled ones, as ``role/part``."""
        for role, source in self.sources().items():
            if role not in self._digests:
                self._digests[role] = ABSENT if source in self._absent else digest(locate(role, source))
        return dict(self._digests)

    def sources(self) -> dict[str, str]:
        """Return where the given models and parts come from, by role, name or ``role/part``."""
        found: dict[str, str] = {}
        for role in (*ROLES, *self.models.external):
            source = self.of(role)
            if isinstance(source, str):
                found[role] = source
            elif isinstance(source, Assemble):
                found |= {f"{role}/{part}": given for part, given in source.assemble.sources.items()}
        return found

    def made(self) -> dict[str, str]:
        """Return where the models lie that the run makes itself, by role."""
        return {role: made_models.target(role) for role in ROLES if isinstance(self.of(role), Train | Assemble)}

    def place(self, role: str) -> str:
        """Return where a model or part lies: absolute when it is given, relative to the run folder when the run makes it."""
        if role in self.made():
            return made_models.target(role)
        source = self.sources()[role]
        return source if source in self._absent else str(locate(role, source))

    def inputs(self, role: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return (reads, given) of a stage that reads a model."""
        made = role in self.made()
        return ((made_models.target(role),), {}) if made else ((), {role: self.given()[role]})


def locate(role: str, source: str) -> Path:
    """Return the absolute path of a given model's folder, or of a part.

    Args:
        role: as in :meth:`Sources.sources`.
        source: a path or a Hugging Face id.

    Raises:
        UserError: when it is not there, or is no Hugging Face folder; a trained projector may be a file.
    """
    if not role.endswith("/projector"):
        return model_path(source)
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise UserError(f"projector {source!r}: {path} does not exist")
    return path


def digest(path: Path) -> str:
    """Return the digest of a file or folder, computed once per process as long as none of its files changes."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return _digest(path, tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@functools.cache
def _digest(path: Path, _: tuple[tuple[str, int, int], ...]) -> str:
    return digest_folder(path) if path.is_dir() else digest_file(path)
