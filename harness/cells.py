"""The cells of the main table: one model on one protocol each, and where the run folder keeps what belongs to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import tasks
from harness import store
from harness.base import UserError
from harness.config import load_recipe
from students.recipe import RESERVED, Recipe


@dataclass(frozen=True)
class Cell:
    """One model on one protocol. ``seed`` is None for a given model: teacher, base, external."""

    name: str
    seed: int | None
    protocol: str

    @property
    def kind(self) -> str:
        """The word for it in ``scores.parquet``."""
        if self.seed is not None:
            return "student"
        return self.name if self.name in RESERVED else "external"

    @property
    def job(self) -> str:
        """The job that evaluates this model."""
        return f"evaluate/{self.name}" + ("" if self.seed is None else f"/seed{self.seed}")

    @property
    def stage(self) -> str:
        """The stage that fills this cell."""
        return f"{self.job}/{self.protocol}"

    @property
    def stem(self) -> str:
        """The cell's files without their suffixes, relative to the run folder; given models use ``seed0``."""
        return f"replies/{self.name}/seed{self.seed or 0}/{self.protocol}"


def cells(
    recipes: Iterable[Recipe], seeds: Sequence[int], protocols: Sequence[str], given: Sequence[str] = RESERVED
) -> list[Cell]:
    """Return every cell of a selection, those of the ``given`` models (:attr:`harness.config.Models.names`) included."""
    names: list[tuple[str, int | None]] = [(name, None) for name in given]
    names += [(recipe.name, seed) for recipe in recipes for seed in seeds]
    return [Cell(name, seed, protocol) for name, seed in names for protocol in protocols]


def read_cell(entry: store.Entry, given: Sequence[str]) -> Cell | None:
    """Read back the cell that a ledger entry fills; None for other stages, and for names that mean nothing any more."""
    head, *parts = entry.stage.split("/")
    if head != "evaluate" or parts[-1] not in tasks.names():
        return None
    if len(parts) == 2:
        return Cell(parts[0], None, parts[1]) if parts[0] in given else None
    try:
        recipe = load_recipe(parts[0])
    except UserError:  # a recipe whose energy, weighting or variant was since removed is no part of this plan
        return None
    return Cell(recipe.name, int(parts[1].removeprefix("seed")), parts[2])


def student_folder(recipe: str, seed: int) -> str:
    """Return the folder of one student, relative to the run folder."""
    return f"students/{recipe}/seed{seed}"


def earlier_folder(recipe: str, seed: int, stage: str) -> str:
    """Return the folder of what an earlier stage of a student's training made; not where the report looks for students."""
    return f"earlier/{recipe}/seed{seed}/{stage}"
