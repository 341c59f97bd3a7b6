"""Figures: every module of this folder with a ``draw`` is one. Adding a figure is adding a file.

A figure module defines ``TITLE`` (what), ``CAPTION`` (how to read it), ``ORDER`` (position, low first) and
``draw(estimates, theme) -> matplotlib.figure.Figure``, which raises :class:`reports.frames.Missing` with a sentence where
the run lacks what it shows, or ``Irrelevant`` where the figure does not concern the run. It uses ``Figure`` objects only: no
pyplot, so nothing global changes. It may define ``notes(estimates) -> list[str]``: sentences for the caption that depend on
the run: n, seeds, what the bars are, what is left out and why. Modules whose name begins with ``_`` are what figures share.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.figures.style import Theme
    from reports.measures import Estimates


@dataclass(frozen=True)
class Drawing:
    """One registered figure."""

    name: str
    title: str
    caption: str
    order: int
    draw: Callable[[Estimates, Theme], Figure]
    notes: Callable[[Estimates], list[str]]

    def write(self, estimates: Estimates, folder: Path, dark: bool) -> list[Path]:
        """Write PNG and PDF on white paper and, if ``dark``, a PNG for pages that are read in the dark; return the files.

        Raises:
            Missing, Irrelevant: as ``draw``, before anything is written.
        """
        from reports.figures import style

        written = [folder / f"{self.name}{end}" for end in (".png", ".pdf")]
        with style.use(style.LIGHT):
            light = self.draw(estimates, style.LIGHT)
            for path in written:
                style.save(light, path)
        if dark:
            with style.use(style.DARK):
                other = self.draw(estimates, style.DARK)
                style.settle(other, light)
                style.save(other, folder / f"{self.name}-dark.png")
            written.append(folder / f"{self.name}-dark.png")
        return written


def _no_notes(_: Estimates) -> list[str]:
    return []


def drawings() -> list[Drawing]:
    """Return every figure in the order in which they stand."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        if module.name == "style" or module.name.startswith("_"):
            continue
        code = importlib.import_module(f"{__name__}.{module.name}")
        lost = [attribute for attribute in ("TITLE", "CAPTION", "ORDER", "draw") if not hasattr(code, attribute)]
        if lost:
            raise UserError(f"{code.__file__}: a figure needs {', '.join(lost)}")
        notes = getattr(code, "notes", _no_notes)
        found.append(Drawing(module.name.replace("_", "-"), code.TITLE, code.CAPTION, code.ORDER, code.draw, notes))
    return sorted(found, key=lambda d: (d.order, d.name))
