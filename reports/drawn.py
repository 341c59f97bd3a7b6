"""Figures of a report, drawn here and, where a second process is allowed, there: they are most of a report's time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from harness.base import end_with_parent
from reports import provenance, runs, tables
from reports.figures import Drawing, drawings
from reports.frames import Irrelevant, Missing
from reports.measures import Estimates


@dataclass(frozen=True)
class Drawn:
    """A figure in its place; where ``missing`` is a sentence, that sentence stands there instead.

    Attributes:
        concerns: False for a figure that does not concern the run and has no place.
        files: what was written.
    """

    name: str
    title: str
    caption: str
    missing: str | None = None
    concerns: bool = True
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Easel:
    """What a process draws from and to.

    Attributes:
        made: one per run.
        folder: where files go.
        dark: whether pages are read in the dark, too.
    """

    made: tuple[Estimates, ...]
    folder: Path
    dark: bool

    def draw(self, figure: str, number: int) -> Drawn:
        """Draw a figure of run ``number``; a second run's file has the run's name behind its own."""
        drawing, estimates = _by_name()[figure], self.made[number]
        several = len(self.made) > 1
        name = f"{figure}--{estimates.run.slug}" if several else figure
        title = tables.titled(drawing.title, estimates.run) + (f", run {estimates.run.name}" if several else "")
        try:
            files = replace(drawing, name=name).write(estimates, self.folder, self.dark)
        except Missing as missing:
            for end in (".png", ".pdf", "-dark.png"):  # an older report's would contradict the sentence
                (self.folder / f"{name}{end}").unlink(missing_ok=True)
            return Drawn(name, title, drawing.caption, str(missing), not isinstance(missing, Irrelevant))
        said = [drawing.caption, *drawing.notes(estimates), provenance.caption(estimates.run)]
        return Drawn(name, title, " ".join(said), files=tuple(files))


def _by_name() -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in drawings()}


#: The other process's, made when it starts.
_easels: list[Easel] = []


def _begin(folders: Sequence[Path], folder: Path, dark: bool, resamples: int, seed: int, level: float) -> None:
    end_with_parent()
    loaded = runs.load(folders)
    _easels.append(Easel(tuple(Estimates(run, resamples, seed, level) for run in loaded), folder, dark))


def _there(figure: str, number: int) -> Drawn:
    return _easels[0].draw(figure, number)


class Figures:
    """All figures of a report; those that the other process has not begun when asked for are drawn here."""

    def __init__(self, easel: Easel, pool: ProcessPoolExecutor | None) -> None:
        self.easel = easel
        self.wanted = [(name, number) for name in _by_name() for number in range(len(easel.made))]
        self.begun: dict[tuple[str, int], Future[Drawn]] = {}
        if pool is not None:  # it starts from the end, and this process from the beginning
            self.begun = {each: pool.submit(_there, *each) for each in reversed(self.wanted)}

    def finish(self) -> list[Drawn]:
        """Return all of them, in order."""
        done = {}
        for each in self.wanted:
            future = self.begun.get(each)
            done[each] = self.easel.draw(*each) if future is None or future.cancel() else future
        return [each.result() if isinstance(each, Future) else each for each in done.values()]


@contextmanager
def figures(folders: Sequence[Path], easel: Easel, processes: int) -> Iterator[Figures]:
    """Begin to draw a report's figures.

    Args:
        folders: of the runs, for another process to load.
        easel: this process's.
        processes: 2 to draw in another process as well, from now on; 1 not to.
    """
    if processes < 2:
        yield Figures(easel, None)
        return
    first = easel.made[0]
    told = (list(folders), easel.folder, easel.dark, first.resamples, first.seed, first.level)
    # spawned: a fork would copy the locks of threads that pandas' readers have running
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, told)
    try:
        yield Figures(easel, pool)
    finally:
        pool.shutdown(cancel_futures=True)
