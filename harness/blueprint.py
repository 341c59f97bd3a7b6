"""From a preset and a selection to the list of stages: what is trained on what, evaluated on what, collected into what."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tasks
from harness import store
from harness.cells import Cell, cells, read_cell, student_folder
from harness.config import Evaluation, Models, Preset, load_recipe
from harness.plan import Stage, survey
from harness.real import Requires
from harness.resources import of_kind
from harness.rows_plan import RowsPlan
from harness.signal_form import Signal
from harness.sources import ABSENT, NOTHING_ABSENT, Absent, Sources
from harness.stages import collect, corpus, data, evaluate
from harness.training_plan import TrainingPlan
from harness.vision_plan import VisionPlan

__all__ = ["Blueprint", "Cell", "cells", "student_folder", "widened"]

#: Estimated seconds per stage kind where the preset names none.
_SECONDS = {
    "data": 10, "corpus": 600, "questions": 10, "model": 120, "encode": 6, "count": 60, "signal": 20, "kept": 20,
    "student": 30, "evaluate": 4, "collect": 2, "report": 15,
}  # fmt: skip
#: Kinds of stages that the processes of a launch compute together; the others are the first process's.
_DISTRIBUTED = ("student", "evaluate")
#: Fields of a preset that came after runs had been recorded without them.
_LATER = ("corpora", "stages", "requires", "declared")


def widened(
    root: Path,
    preset: Preset,
    models: Models,
    limit: int | None,
    wanted: Sequence[Cell],
    data_root: Path | None = None,
    absent: Absent = NOTHING_ABSENT,
) -> list[Cell]:
    """Return ``wanted`` and every other cell that the run folder holds, up to date, under the same configuration.

    So a command for one more student, seed or task adds to the report instead of replacing it.
    """
    asked = set(wanted)
    held = (read_cell(entry, models.names) for entry in store.entries(root))
    found = [cell for cell in held if cell is not None and cell not in asked]
    if not found:
        return list(wanted)
    candidates = [*wanted, *found]
    done = survey(root, Blueprint(preset, models, limit, candidates, data_root, absent).stages())
    return [*wanted, *(cell for cell in found if cell.stage in done)]


class Blueprint:
    """Builds the stages of a preset for some cells of its table.

    Args:
        preset: the experiment.
        models: given or trained; the preset's, or those of :func:`harness.config.retrained`.
        limit: whole clusters per protocol, or None for the preset's.
        wanted: the cells; their order does not matter.
        data_root: the folder with the published data sets, for protocols and corpora that read one.
        absent: what is known to be missing, for a plan that is only shown.
        failed: a sentence for each stage that was given up, which the report has to tell.
    """

    def __init__(
        self,
        preset: Preset,
        models: Models,
        limit: int | None,
        wanted: Iterable[Cell],
        data_root: Path | None = None,
        absent: Absent = NOTHING_ABSENT,
        failed: Sequence[str] = (),
    ) -> None:
        self.failed = tuple(failed)
        self.preset = preset
        self.models = models
        self.data_root = data_root
        self.sources = Sources(models, absent)
        self.training = TrainingPlan(preset, self.sources, data_root, absent)
        self._absent = absent
        self._protocol = functools.cache(tasks.protocol)  # files that every cell asks for
        self._signature = functools.cache(data.signature)
        self.limit = limit if limit is not None else preset.evaluation.limit
        self.vision = VisionPlan(preset, self.sources, self.limit)
        self.rows = RowsPlan(preset, self.sources, self.vision)
        listed = [*models.names, *(load_recipe(r).name for r in preset.recipes)]
        rank = {name: number for number, name in enumerate([*listed, *preset.protocols])}
        last = len(rank)
        self.cells = sorted(
            set(wanted),
            key=lambda c: (rank.get(c.name, last), c.name, c.seed or 0, rank.get(c.protocol, last), c.protocol),
        )
        self.protocols = sorted({c.protocol for c in self.cells}, key=lambda p: (rank.get(p, last), p))
        self.students = list(dict.fromkeys((c.name, c.seed) for c in self.cells if c.seed is not None))
        self._stages: list[Stage] = []

    def stages(self) -> list[Stage]:
        """Return every stage, each after what it reads."""
        self._stages = []
        for stage in self.training.data():
            self._add(stage)
        self._questions()
        for stage in self.training.models([name for name, _ in self.students]):
            self._add(stage)
        given = [c for c in self.cells if c.seed is None]
        for cell in given:
            self._evaluation(cell, self.sources.place(cell.name))
        # all students of one seed before the next seed's, so that an interrupted run of three seeds holds whole tables
        for name, seed in sorted(self.students, key=lambda pair: pair[1]):
            for stage in self.training.student(name, seed):
                self._add(stage)
        for cell in self.cells:
            if cell.seed is not None:
                self._evaluation(cell, f"{student_folder(cell.name, cell.seed)}/student")
        self._collect()
        self._report()
        return self.vision.added(self._stages)

    def settled(self, root: Path, stages: Sequence[Stage], bound: int | None) -> list[Stage]:
        """Return the plan with the caches that only save work, as far as they are worth it and fit.

        Args:
            root: the run folder.
            stages: from :meth:`stages`.
            bound: bytes that caches may hold; None for no bound.
        """
        return self.rows.settled(root, self.vision.settled(root, stages, bound), bound)

    def _add(self, stage: Stage) -> None:
        cost = self.preset.seconds.get(stage.kind, _SECONDS[stage.kind])
        needs = of_kind(stage.kind, self.preset.threads, self.preset.resources)
        shared = stage.kind in _DISTRIBUTED
        self._stages.append(replace(stage, job=stage.job or stage.id, cost=cost, distributed=shared, resources=needs))

    # ---- the kinds of stages, in order -------------------------------------------------------------------------------------

    def _questions(self) -> None:
        asked = [data.evaluation_facts(self._protocol(name)) for name in self.protocols]
        self._add(
            Stage(
                id="questions",
                kind="questions",
                run="harness.stages.data:questions",
                version=data.STAGE_VERSION,
                config={"protocols": asked, "limit": self.limit, **self._evaluation_facts("pictures", "incomplete")},
                targets=("questions", *self._pictures()),
                given={key: value for name in self.protocols for key, value in self._data_given(name).items()},
                places=self._data_places(),
            )
        )

    def _evaluation_facts(self, *names: str) -> dict[str, Any]:
        """Return those settings of the evaluation that are not the usual ones, so that the others change no digest."""
        usual = Evaluation()
        settings = {name: getattr(self.preset.evaluation, name) for name in names}
        return {name: value for name, value in settings.items() if value != getattr(usual, name)}

    def _pictures(self) -> tuple[str, ...]:
        return () if self.preset.evaluation.pictures == 0 else ("images",)

    def _data_places(self) -> dict[str, str]:
        return {} if self.data_root is None else {"data_root": str(self.data_root)}

    def _data_given(self, name: str) -> dict[str, str]:
        """Return what the data root holds for a protocol, as a stage's ``given``."""
        protocol = self._protocol(name)
        if self.data_root is None or protocol.dataset is None:
            return {}
        if protocol.benchmark in self._absent.benchmarks:
            return {f"data/{protocol.benchmark}": ABSENT}
        return {f"data/{protocol.benchmark}": self._signature(self.data_root / protocol.benchmark)}

    def _evaluation(self, cell: Cell, checkpoint: str) -> None:
        """Add the stage of one cell; a model's cells are one job, so that it is loaded once."""
        reads, given = ((checkpoint,), {}) if cell.seed is not None else self.sources.inputs(cell.name)
        targets = tuple(f"{cell.stem}{suffix}" for suffix in self._suffixes())
        gold = evaluate.gold(cell.protocol)
        taught = self.preset.evaluation.diagnostics and self.models.teacher is not None
        if taught and cell.name == "teacher":
            targets = (*targets, gold)
        elif taught:
            reads = (*reads, gold)
        config = {
            "name": cell.name,
            "protocol": data.evaluation_facts(self._protocol(cell.protocol)),
            "limit": self.limit,
            "batch_size": self.preset.evaluation.batch_size,
            "threads": self.preset.threads,
            "taught": taught,
            **self._evaluation_facts("diagnostics", "incomplete", "dtype"),
        }
        self._add(
            Stage(
                id=cell.stage,
                kind="evaluate",
                run="harness.stages.evaluate:run",
                version=evaluate.STAGE_VERSION,
                config=config,
                targets=targets,
                reads=reads,
                given={**given, **self._data_given(cell.protocol)},
                places={"checkpoint": checkpoint, **self._data_places()},
                job=cell.job,
                resumes=True,
            )
        )

    def _suffixes(self) -> tuple[str, ...]:
        return evaluate.SUFFIXES if self.preset.evaluation.diagnostics else evaluate.WITHOUT_DIAGNOSTICS

    def _frames(self) -> tuple[str, ...]:
        return collect.TARGETS if self.preset.evaluation.diagnostics else collect.TARGETS[:1]

    def _collect(self) -> None:
        rows = [
            {
                "student": cell.name,
                "kind": cell.kind,
                "seed": cell.seed,
                "protocol": cell.protocol,
                "stem": cell.stem,
            }
            for cell in self.cells
        ]
        self._add(
            Stage(
                id="collect",
                kind="collect",
                run="harness.stages.collect:collect",
                version=collect.STAGE_VERSION,
                config={"rows": rows},
                targets=self._frames(),
                reads=tuple(f"{cell.stem}{suffix}" for cell in self.cells for suffix in self._suffixes()[1:]),
            )
        )

    def _report(self) -> None:
        dynamics = [f"{student_folder(name, seed)}/{file}" for name, seed in self.students for file in collect.DYNAMICS]
        words = [f"{cell.stem}{evaluate.WORDS}" for cell in self.cells]
        trained: tuple[str, ...] = ("data",) if self.preset.training is not None else ()
        trained += tuple(f"{corpus.target(name)}/corpus.json" for name in self.training.corpora)
        self._add(
            Stage(
                id="report",
                kind="report",
                run="harness.stages.collect:report",
                version=collect.STAGE_VERSION,
                config=self._report_facts(),
                targets=("report",),
                reads=(*self._frames(), *trained, "questions", *self._pictures(), *words, *dynamics),
                given={"reports": collect.room_digest(), **self.sources.given()},
            )
        )

    def _report_facts(self) -> Mapping[str, Any]:
        """Return what the report says that is in none of the files it reads: captions, selection, settings."""
        preset = self.preset.model_dump(mode="json", exclude={"seconds", "workers", "resources", "cache_gb"})
        if self.preset.requires == Requires():
            del preset["requires"]
        if self.preset.signal == Signal():
            del preset["signal"]
        captions = {name: [tasks.protocol(name).title, tasks.protocol(name).description] for name in self.protocols}
        return {
            "preset": {name: value for name, value in preset.items() if name not in _LATER or value},
            "students": [list(pair) for pair in self.students],
            "protocols": captions,
            "limit": self.limit,
            **({"failed": list(self.failed)} if self.failed else {}),
        }
