"""From a preset and a selection to the list of stages: what is trained on what, evaluated on what, collected into what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tasks
from harness import store
from harness.base import UserError, digest_folder
from harness.config import Evaluation, Models, Preset, Train, load_recipe, load_variant, model_path
from harness.plan import Stage, survey
from harness.stages import collect, data, evaluate, models, student
from students.recipe import RESERVED, Recipe

#: Estimated seconds per stage kind where the preset names none.
_SECONDS = {"data": 10, "questions": 10, "model": 120, "signal": 20, "student": 30, "evaluate": 4, "collect": 2, "report": 15}


@dataclass(frozen=True)
class Cell:
    """One model on one protocol: a cell of the main table. ``seed`` is None for a given model: teacher, base, external."""

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


def student_folder(recipe: str, seed: int) -> str:
    """Return the folder of one student, relative to the run folder."""
    return f"students/{recipe}/seed{seed}"


def widened(
    root: Path, preset: Preset, models: Models, limit: int | None, wanted: Sequence[Cell], data_root: Path | None = None
) -> list[Cell]:
    """Return ``wanted`` and every other cell that the run folder holds, up to date, under the same configuration.

    So a command for one more student, seed or task adds to the report instead of replacing it.
    """
    entries = store.entries(root)
    found = [cell for cell in (_cell(entry, models.names) for entry in entries) if cell is not None and cell not in wanted]
    candidates = [*wanted, *found]
    done = survey(root, Blueprint(preset, models, limit, candidates, data_root).stages())
    return [*wanted, *(cell for cell in found if cell.stage in done)]


def _cell(entry: store.Entry, given: Sequence[str]) -> Cell | None:
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


class Blueprint:
    """Builds the stages of a preset for some cells of its table.

    Args:
        preset: the experiment.
        models: given or trained; the preset's, or those of :func:`harness.config.retrained`.
        limit: whole clusters per protocol, or None for the preset's.
        wanted: the cells; their order does not matter.
        data_root: the folder with the published data sets, for protocols that read one.
    """

    def __init__(
        self, preset: Preset, models: Models, limit: int | None, wanted: Iterable[Cell], data_root: Path | None = None
    ) -> None:
        self.preset = preset
        self.models = models
        self.data_root = data_root
        self.limit = limit if limit is not None else preset.evaluation.limit
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
        self._given: dict[str, str] = {}

    def stages(self) -> list[Stage]:
        """Return every stage, each after what it reads."""
        self._stages = []
        if self.preset.training is not None or self.made():
            self._data()
        self._questions()
        for role in ("tower", "teacher", "base"):
            if isinstance(self._source(role), Train):
                self._model(role)
        if self.preset.training is not None:
            self._signal()
        given = [c for c in self.cells if c.seed is None]
        for cell in given:
            self._evaluation(cell, self._place(cell.name))
        # all students of one seed before the next seed's, so that an interrupted run of three seeds holds whole tables
        for name, seed in sorted(self.students, key=lambda pair: pair[1]):
            self._student(name, seed)
        for cell in self.cells:
            if cell.seed is not None:
                self._evaluation(cell, f"{student_folder(cell.name, cell.seed)}/student")
        self._collect()
        self._report()
        return self._stages

    def given(self) -> dict[str, str]:
        """Return the digests of the given models, by role or name."""
        for role, source in self.sources().items():
            if role not in self._given:
                self._given[role] = digest_folder(model_path(source))
        return dict(self._given)

    def sources(self) -> dict[str, str]:
        """Return where the given models come from, by role or name."""
        found = {role: self._source(role) for role in ("tower", "teacher", "base", *self.models.external)}
        return {role: source for role, source in found.items() if isinstance(source, str)}

    def made(self) -> dict[str, str]:
        """Return where the models lie that the run makes itself, by role."""
        return {role: models.target(role) for role in ("tower", "teacher", "base") if isinstance(self._source(role), Train)}

    def _source(self, role: str) -> str | Train | None:
        source: str | Train | None = self.models.external.get(role) or getattr(self.models, role)
        return source

    def _place(self, role: str) -> str:
        """Return where a model lies: absolute when it is given, relative to the run folder when the run makes it."""
        source = self._source(role)
        return models.target(role) if isinstance(source, Train) else str(model_path(str(source)))

    def _inputs(self, role: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return (reads, given) for a model."""
        made = isinstance(self._source(role), Train)
        return ((models.target(role),), {}) if made else ((), {role: self.given()[role]})

    def _add(self, stage: Stage) -> None:
        cost = self.preset.seconds.get(stage.kind, _SECONDS[stage.kind])
        self._stages.append(replace(stage, job=stage.job or stage.id, cost=cost))

    # ---- the kinds of stages, in order -------------------------------------------------------------------------------------

    def _data(self) -> None:
        trained_on = [data.training_facts(tasks.protocol(name)) for name in self.preset.protocols]
        injected = self.preset.data.model_dump(mode="json", exclude={"blind_teacher"})  # what it says is in the signal
        self._add(
            Stage(
                id="data",
                kind="data",
                run="harness.stages.data:training",
                version=data.STAGE_VERSION,
                config={"protocols": trained_on, "data": injected},
                targets=("data",),
            )
        )

    def _questions(self) -> None:
        asked = [data.evaluation_facts(tasks.protocol(name)) for name in self.protocols]
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
        protocol = tasks.protocol(name)
        if self.data_root is None or protocol.dataset is None:
            return {}
        return {f"data/{protocol.benchmark}": data.signature(self.data_root / protocol.benchmark)}

    def _model(self, role: str) -> None:
        source = self._source(role)
        options = source.train.model_dump(mode="json") if isinstance(source, Train) else {}
        reads: tuple[str, ...] = ("data",)
        given: dict[str, str] = {}
        places: dict[str, str] = {}
        if role != "tower" and self._source("tower") is not None:
            more, given = self._inputs("tower")
            reads, places = (*reads, *more), {"tower": self._place("tower")}
        self._add(
            Stage(
                id=f"model/{role}",
                kind="model",
                run="harness.stages.models:train",
                version=models.STAGE_VERSION,
                config={"role": role, "train": options, "threads": self.preset.threads},
                targets=(models.target(role), models.record(role)),
                reads=reads,
                given=given,
                places=places,
            )
        )

    def _signal(self) -> None:
        assert self.preset.training is not None
        reads, given = self._inputs("teacher")
        packing = self.preset.training.model_dump(mode="json", include={"rows", "turns"})  # shapes the arithmetic of the pass
        self._add(
            Stage(
                id="teacher/signal",
                kind="signal",
                run="harness.stages.student:signal",
                version=student.STAGE_VERSION,
                config={"training": packing, "threads": self.preset.threads, "blind": self._blind()},
                targets=(student.SIGNAL,),
                reads=("data", *reads),
                given=given,
                places={"teacher": self._place("teacher")},
            )
        )

    def _blind(self) -> dict[str, Any]:
        """Return what the teacher says where it is blind: the arguments of :class:`students.blind.Blind`."""
        return {"says": self.preset.data.blind_teacher, "seed": self.preset.data.seed}

    def _student(self, name: str, seed: int) -> None:
        if self.preset.training is None:
            raise UserError(f"preset {self.preset.name!r} trains nothing, so it cannot make the student {name!r}")
        reads, given = self._inputs("base")
        recipe = load_recipe(name)
        variant = load_variant(recipe.variant).model_dump(exclude={"description"}) if recipe.variant else None
        config = {
            "recipe": name,
            "variant": variant,
            "training": self.preset.training.model_dump(mode="json"),
            "seed": seed,
            "threads": self.preset.threads,
            "blind": self._blind(),
        }
        self._add(
            Stage(
                id=f"student/{name}/seed{seed}",
                kind="student",
                run="harness.stages.student:distil",
                version=student.STAGE_VERSION,
                config=config,
                targets=(student_folder(name, seed),),
                reads=("data", student.SIGNAL, *reads),
                given=given,
                places={"base": self._place("base"), "teacher": self._place("teacher")},
            )
        )

    def _evaluation(self, cell: Cell, checkpoint: str) -> None:
        """Add the stage of one cell; a model's cells are one job, so that it is loaded once."""
        reads, given = ((checkpoint,), {}) if cell.seed is not None else self._inputs(cell.name)
        targets = tuple(f"{cell.stem}{suffix}" for suffix in self._suffixes())
        gold = evaluate.gold(cell.protocol)
        taught = self.preset.evaluation.diagnostics and self.models.teacher is not None
        if taught and cell.name == "teacher":
            targets = (*targets, gold)
        elif taught:
            reads = (*reads, gold)
        config = {
            "name": cell.name,
            "protocol": data.evaluation_facts(tasks.protocol(cell.protocol)),
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
        trained = ("data",) if self.preset.training is not None else ()
        self._add(
            Stage(
                id="report",
                kind="report",
                run="harness.stages.collect:report",
                version=collect.STAGE_VERSION,
                config=self._report_facts(),
                targets=("report",),
                reads=(*self._frames(), *trained, "questions", *self._pictures(), *words, *dynamics),
                given={"reports": collect.room_digest(), **self.given()},
            )
        )

    def _report_facts(self) -> Mapping[str, Any]:
        """Return what the report says that is in none of the files it reads: captions, selection, settings."""
        captions = {name: [tasks.protocol(name).title, tasks.protocol(name).description] for name in self.protocols}
        return {
            "preset": self.preset.model_dump(mode="json", exclude={"seconds", "workers"}),
            "students": [list(pair) for pair in self.students],
            "protocols": captions,
            "limit": self.limit,
        }
