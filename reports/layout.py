"""Layouts of tables: the schema of ``reports/layouts/NAME.yaml``, which students and columns one picks, and where they lie."""

from __future__ import annotations

import fnmatch
import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pydantic

from harness.base import Strict, UserError, read_yaml, unknown
from reports import paper_facts
from reports.frames import Run
from reports.measures import Estimates, measure
from tasks import averages, catalogue

if TYPE_CHECKING:
    from reports.cells import Table

FOLDER = Path(__file__).parent / "layouts"


class Layout(Strict):
    """The schema of ``reports/layouts/NAME.yaml``; docs/reports.md has examples.

    Attributes:
        title, caption: plain text; what is said of n, seeds, intervals and the miniature suite is added to them.
        order: position in the report, low first.
        columns: ``protocols``: one column per protocol of the run; ``measures``: one per measure, mean over protocols.
        measures: names in :data:`reports.measures.MEASURES`; with ``columns: protocols`` exactly one. Of a table of the
            paper: protocols, derived scores and names in :data:`reports.paper_facts.EFFICIENCY`, one column each.
        protocols: globs over the run's protocols: which of them have a column.
        students: globs over student names, in the order in which the rows stand; given models are ``teacher``, ``base``.
        channels: globs, one per channel of a recipe (``["ce", "*"]``: cross-entropy and one energy); empty for any recipe.
            Given models have no channels and are not filtered.
        minus: what each student is compared with, paired: ``"@fixed"`` (the recipe of the same channels with that
            weighting) or a student's name. Null for plain values. A student is never compared with itself.
        references: rows for random guessing and for the best constant answer, where scores are shown.
        mark: mark the best student of each column and all that are not resolved from it (values), or every resolved
            cell (differences).
        mean: add a last column with the mean over the protocols, where there are several; of scores, the mean of the numbers
            in percent of their range.
        paper: the number of the paper's table that this is: its students come first, and beside each measured number stand
            the reported one and the difference. ``students`` and ``channels`` then pick what is added of the run's own.
        beside: where reported numbers and differences stand: in ``columns`` or in ``rows`` of their own.
        base: glob, without regard to case, over the source of the run's base model; where it does not match, the paper
            speaks of another student, and nothing reported is put beside.
        setting: what the paper's numbers were made with, one sentence.
    """

    title: str
    caption: str
    order: int
    columns: Literal["protocols", "measures"] = "protocols"
    measures: tuple[str, ...]
    protocols: tuple[str, ...] = ("*",)
    students: tuple[str, ...] = ("*",)
    channels: tuple[str, ...] = ()
    minus: str | None = None
    references: tuple[Literal["chance", "constant"], ...] = ()
    mark: bool = True
    mean: bool = False
    paper: int | None = None
    beside: Literal["columns", "rows"] = "columns"
    base: str = "*"
    setting: str = ""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Layout:
        try:
            return self._of_run() if self.paper is None else self._of_paper()
        except UserError as error:
            raise ValueError(str(error)) from error  # so that the file is named

    def _of_run(self) -> Layout:
        for name in ("beside", "base", "setting"):
            if name in self.model_fields_set:
                raise ValueError(f"{name} is for tables of the paper, which name one: paper: 1 to 6")
        for name in self.measures:
            measure(name)
        if self.columns == "protocols" and len(self.measures) != 1:
            raise ValueError(f"columns: protocols shows one measure, {len(self.measures)} are given")
        if "score" in self.measures and self.columns == "measures":
            raise ValueError("scores have a unit per benchmark; show them with columns: protocols")
        if self.references and self.measures != ("score",):
            raise ValueError("references exist for scores only")
        if self.protocols != ("*",) and (self.mean or self.columns == "measures"):
            raise ValueError('means are over all protocols of the run: they need protocols: ["*"]')
        return self

    def _of_paper(self) -> Layout:
        if self.paper not in paper_facts.TABLES:
            raise ValueError(f"paper: {self.paper}; the paper's tables are 1 to 6")
        for name in ("columns", "protocols", "minus", "references", "mark", "mean"):
            if name in self.model_fields_set:
                raise ValueError(f"{name} does not concern a table of the paper")
        known = (*catalogue.names(), *averages.derived_names(), *paper_facts.EFFICIENCY)
        for name in self.measures:
            if name not in known:
                raise unknown("measure of the paper", name, known)
        averages.one_of_each(name for name in self.measures if name.split("@")[0] != "scienceqa")
        return self


@dataclass(frozen=True)
class Computed:
    """A layout that is a module; see the top of :mod:`reports.tables`."""

    title: str
    caption: str
    order: int
    build: Callable[[str, Estimates], Table]


def layouts(names: Sequence[str] | None = None) -> dict[str, Layout | Computed]:
    """Read the layouts called ``names`` (default: all that are in the folder), in the order in which they stand."""
    files = [*sorted(FOLDER.glob("*.yaml")), *(p for p in sorted(FOLDER.glob("*.py")) if not p.name.startswith("_"))]
    known = {path.stem.replace("_", "-"): path for path in files}
    for name in names or ():
        if name not in known:
            raise unknown("layout", name, known)
    read = {name: _read(known[name]) for name in (names or known)}
    return dict(sorted(read.items(), key=lambda item: (item[1].order, item[0])))


def _read(path: Path) -> Layout | Computed:
    if path.suffix == ".yaml":
        return read_yaml(path, Layout)
    code = importlib.import_module(f"reports.layouts.{path.stem}")
    lost = [attribute for attribute in ("TITLE", "CAPTION", "ORDER", "build") if not hasattr(code, attribute)]
    if lost:
        raise UserError(f"{path}: a layout in Python needs {', '.join(lost)}")
    return Computed(code.TITLE, code.CAPTION, code.ORDER, code.build)


# ---- what a layout picks ---------------------------------------------------------------------------------------------------


def select(globs: Sequence[str], students: Sequence[str]) -> list[str]:
    """Return the students that match, in the order of the globs and then of the run."""
    chosen: dict[str, None] = {}
    for pattern in globs:
        chosen.update(dict.fromkeys(s for s in students if fnmatch.fnmatchcase(s, pattern)))
    return list(chosen)


def picked(layout: Layout, run: Run) -> list[str]:
    """Return the students of a run that a layout's rows show."""
    return [s for s in select(layout.students, run.students) if not _trained(s, run) or has_channels(s, layout.channels)]


def _trained(student: str, run: Run) -> bool:
    return run.kinds.get(student, "student") == "student"


def has_channels(student: str, globs: Sequence[str]) -> bool:
    """Whether a recipe's channels match ``globs`` one to one, in any order; any recipe matches no globs at all."""
    channels = student.partition("@")[0].split("+")
    if not globs:
        return True
    if len(channels) != len(globs):
        return False
    return any(all(map(fnmatch.fnmatchcase, order, globs)) for order in itertools.permutations(channels))
