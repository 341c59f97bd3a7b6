"""Whether a cache that only saves work is made: what the plans of features and of rows share.

No digest knows of such caches (:attr:`harness.plan.Stage.uses`), so each command decides anew what is worth it and fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import caching, needs
from harness.base import UserError
from harness.plan import Producers, Stage
from harness.signal_form import SHARE, TOKENS_SHARE

#: Without --cache-gb, such a cache takes no more than this share of what is free on the disk.
SHARE_OF_FREE = 0.25


@dataclass(frozen=True)
class Decision:
    """Whether something is made once, and why.

    Attributes:
        what: it is.
        once: yes or no.
        why: in one line.
        words: for yes and for no.
    """

    what: str
    once: bool
    why: str
    words: tuple[str, str]

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.what}: {self.words[0 if self.once else 1]}, because {self.why}"


def room(root: Path, stage: Stage, users: Sequence[Stage], stages: Sequence[Stage], bound: int | None) -> tuple[int, str]:
    """Return the bytes that a cache may take, and what says so.

    Args:
        root: the run folder.
        stage: makes the cache.
        users: use it.
        stages: of the plan; other caches that ``stage`` and each of ``users`` need at the same time come off the bound.
        bound: bytes that caches may hold; None for no bound.
    """
    if bound is None:
        return of_free(root)
    producers = Producers(stages)
    beside = [{s.id for s in producers.upstream(each) if s.cache and s.id != stage.id} for each in (stage, *users)]
    named = set().union(*beside)
    sizes = {s.id: taken(root, s, bound) for s in stages if s.id in named}
    others = max(sum(sizes[name] for name in ids) for ids in beside)
    return max(0, bound - others), f"--cache-gb {bound / caching.GB:g} (beside other caches)"


def of_free(root: Path) -> tuple[int, str]:
    """Return the bytes that the disk has for such a cache, and what says so."""
    return int(SHARE_OF_FREE * needs.free_disk(root)), f"{SHARE_OF_FREE:.0%} of what is free on the disk"


def taken(root: Path, stage: Stage, bound: int | None) -> int:
    """Return the bytes of a cache, as it lies there or else as planned; its share of a bound before it is known.

    0 where no form of it fits into its bound: nobody may need it any more, and who does will hear it when it is to be made.
    """
    there = caching.lying(root, stage.id)
    if there is not None:
        return there
    try:
        size = caching.planned(root, stage).bytes
    except UserError:
        return 0
    if size is None:  # a signal, and vision tokens, take no more than this once that is decided
        return int({"signal": SHARE, "kept": TOKENS_SHARE}.get(stage.kind, 0.0) * (bound or 0))
    return size
