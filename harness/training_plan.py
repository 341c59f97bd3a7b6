"""The stages that make students: training data, models the run makes, the teacher's signal, and the training itself.

Two ways. PACKED: ``training``, on prompts of the protocols' own train splits that are all in memory, with the teacher's signal
cached once. STREAMED: ``stages``, on corpora that are read row by row, with the teacher run beside the student. What a stage
function finds in its context:

* ``corpus/NAME`` (harness/stages/corpus.py): config ``{name, source, protocols}`` (``source``: what shapes the rows of
  :class:`harness.real.CorpusSource`; ``protocols``: facts of those that prompt its rows); places ``data_root``, ``file`` and
  ``images`` as far as there are any; ``settings.skip_unreadable``; target ``corpora/NAME``.
* ``student/RECIPE/seedN[/STAGE]`` (harness/stages/student.py): config ``{recipe, variant, training, seed, threads}`` with, when
  packed, ``blind``, and when streamed, ``corpus`` and ``stage``; places ``base`` (what it starts from), ``teacher`` (whenever
  it is read), and when streamed ``corpus`` (the folder ``corpora/NAME``) and ``images``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from harness.base import UserError
from harness.cells import earlier_folder, student_folder
from harness.config import Preset, Train, load_recipe, load_variant
from harness.plan import Stage
from harness.real import Assemble, CorpusSource, TrainingStage
from harness.signal_plan import SignalPlan
from harness.sources import ABSENT, NOTHING_ABSENT, Absent, Sources, digest
from harness.stages import corpus, data, encode, models, signal, student
from students.options import DistilOptions

#: What of a corpus's source shapes its rows; the rest is for the plan.
_SHAPING = {"format", "options"}


class TrainingPlan:
    """Builds these stages for one preset.

    Args:
        preset: the experiment.
        sources: its models.
        data_root: the folder with the published data sets.
        absent: what is known to be missing, for a plan that is only shown.
    """

    def __init__(self, preset: Preset, sources: Sources, data_root: Path | None, absent: Absent = NOTHING_ABSENT) -> None:
        self.preset = preset
        self.sources = sources
        self.data_root = data_root
        self.corpora = tuple(dict.fromkeys(stage.corpus for stage in preset.stages))
        self.signal = SignalPlan(preset, sources)
        self._absent = absent

    def data(self) -> list[Stage]:
        """Return the stages that make the training data."""
        found = [self._data()] if self.preset.training is not None or self._trained_here() else []
        return found + [self._corpus(name) for name in self.corpora]

    def models(self, names: Sequence[str] = ()) -> list[Stage]:
        """Return the stages before the first student's, but for the data, each after what it reads.

        Args:
            names: the students, whose energies say what of the teacher is kept.
        """
        found = []
        for role in self.sources.made():
            found.append(self._assembled(role) if isinstance(self.sources.of(role), Assemble) else self._trained(role))
        if self.preset.training is not None:
            found.append(self._encode())
        if self.preset.training is not None and not self.preset.training.live_teacher:
            found += self.signal.packed(self.preset.training, self._blind(), names)
        made: dict[str, Stage] = {}
        for stage in self.preset.stages:
            images = self._places(stage.corpus).get("images")
            made |= {each.id: each for each in self.signal.streamed(stage, names, images) if each.id not in made}
        return [*found, *made.values()]

    def _trained_here(self) -> bool:
        return any(isinstance(self.sources.of(role), Train) for role in self.sources.made())

    # ---- data --------------------------------------------------------------------------------------------------------------

    def _data(self) -> Stage:
        trained_on = [data.training_facts(tasks.protocol(name)) for name in self.preset.protocols]
        injected = self.preset.data.model_dump(mode="json", exclude={"blind_teacher"})  # what it says is in the signal
        return Stage(
            id="data",
            kind="data",
            run="harness.stages.data:training",
            version=data.STAGE_VERSION,
            config={"protocols": trained_on, "data": injected},
            targets=("data",),
        )

    def _corpus(self, name: str) -> Stage:
        source = self.preset.corpora[name]
        protocols = [tasks.protocol(each) for each in self.preset.protocols] if source.format != "llava" else []
        if source.format == "scienceqa":
            protocols = [each for each in protocols if each.benchmark == "scienceqa"]
        return Stage(
            id=f"corpus/{name}",
            kind="corpus",
            run="harness.stages.corpus:index",
            version=corpus.STAGE_VERSION,
            config={
                "name": name,
                "source": source.model_dump(mode="json", include=_SHAPING),
                "protocols": [data.training_facts(each) for each in protocols],
            },
            targets=(corpus.target(name),),
            given=self._corpus_given(name),
            places=self._places(name),
        )

    def _places(self, name: str) -> dict[str, str]:
        """Return where a corpus lies; nothing where that is not known, in a plan that is only shown."""
        unknown = name in self._absent.corpora and self.data_root is None
        return {} if unknown else corpus_places(self.preset.corpora[name], self.data_root)

    def _corpus_given(self, name: str) -> dict[str, str]:
        """Return the digest of the file of rows; of the images, the stage itself records names and sizes."""
        if name in self._absent.corpora:
            return {f"corpora/{name}": ABSENT}
        places = self._places(name)
        return {f"corpora/{name}": digest(Path(places["file"]))} if "file" in places else {}

    # ---- models ------------------------------------------------------------------------------------------------------------

    def _trained(self, role: str) -> Stage:
        source = self.sources.of(role)
        options = source.train.model_dump(mode="json") if isinstance(source, Train) else {}
        reads: tuple[str, ...] = ("data",)
        given: dict[str, str] = {}
        places: dict[str, str] = {}
        if role != "tower" and self.sources.of("tower") is not None:
            more, given = self.sources.inputs("tower")
            reads, places = (*reads, *more), {"tower": self.sources.place("tower")}
        return Stage(
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

    def _assembled(self, role: str) -> Stage:
        source = self.sources.of(role)
        assert isinstance(source, Assemble)
        parts = source.assemble
        return Stage(
            id=f"model/{role}",
            kind="model",
            run="harness.stages.models:assemble",
            version=models.ASSEMBLE_VERSION,
            config={"role": role, "family": parts.family, "seed": parts.seed, "parts": sorted(parts.sources)},
            targets=(models.target(role),),
            given={f"{role}/{part}": self.sources.given()[f"{role}/{part}"] for part in parts.sources},
            places={part: self.sources.place(f"{role}/{part}") for part in parts.sources},
        )

    # ---- training ----------------------------------------------------------------------------------------------------------

    def _encode(self) -> Stage:
        reads, given = self.sources.inputs("base")
        return Stage(
            id="encode",
            kind="encode",
            run="harness.stages.encode:run",
            version=encode.STAGE_VERSION,
            config={},
            targets=(encode.TARGET,),
            reads=("data", *reads),
            given=given,
            places={"base": self.sources.place("base")},
            cache=True,
            plans=encode.PLANS,
        )

    def _blind(self) -> dict[str, Any]:
        """Return what the teacher says where it is blind: the arguments of :class:`students.blind.Blind`."""
        return {"says": self.preset.data.blind_teacher, "seed": self.preset.data.seed}

    def student(self, name: str, seed: int) -> list[Stage]:
        """Return the stages of one student's training, in order.

        Raises:
            UserError: when the preset trains nothing.
        """
        if self.preset.training is not None:
            return [self._packed(name, seed, self.preset.training)]
        if not self.preset.stages:
            raise UserError(f"preset {self.preset.name!r} trains nothing, so it cannot make the student {name!r}")
        found: list[Stage] = []
        *earlier, last = self.preset.stages
        for stage in earlier:
            start = found[-1].targets[0] if found else None
            folder = earlier_folder(name, seed, stage.name)
            found.append(self._streamed(f"student/{name}/seed{seed}/{stage.name}", folder, name, seed, stage, start))
        start = found[-1].targets[0] if found else None
        found.append(self._streamed(f"student/{name}/seed{seed}", student_folder(name, seed), name, seed, last, start))
        return found

    def _facts(self, name: str, seed: int, training: DistilOptions) -> dict[str, Any]:
        recipe = load_recipe(name)
        variant = load_variant(recipe.variant).model_dump(exclude={"description"}) if recipe.variant else None
        return {
            "recipe": name,
            "variant": variant,
            "training": training.model_dump(mode="json"),
            "seed": seed,
            "threads": self.preset.threads,
        }

    def _packed(self, name: str, seed: int, training: DistilOptions) -> Stage:
        reads, given = self.sources.inputs("base")
        if training.live_teacher:
            more, taught = self.sources.inputs("teacher")
            reads, given = (*reads, *more), {**given, **taught}
        else:
            reads = (signal.SIGNAL, *reads)
        tokens = self.signal.reads_tokens(name, training)
        places = {"base": self.sources.place("base"), "teacher": self.sources.place("teacher")}
        return Stage(
            id=f"student/{name}/seed{seed}",
            kind="student",
            run="harness.stages.student:distil",
            version=student.STAGE_VERSION,
            config={**self._facts(name, seed, training), "blind": self._blind()},
            targets=(student_folder(name, seed),),
            reads=("data", *reads),
            given=given,
            places={**places, "kept": signal.KEPT} if tokens else places,
            resumes=training.save_every is not None,
            uses=(encode.TARGET, signal.KEPT) if tokens else (encode.TARGET,),
        )

    def _streamed(self, label: str, folder: str, name: str, seed: int, stage: TrainingStage, start: str | None) -> Stage:
        """``start``: the folder of the stage before it, or None for the base."""
        index = corpus.target(stage.corpus)
        if start is None:
            reads, given = self.sources.inputs("base")
            base = self.sources.place("base")
        else:
            reads, given, base = (f"{start}/student",), {}, f"{start}/student"
        places: Mapping[str, str] = {"base": base, "corpus": index}
        images = self._places(stage.corpus).get("images")
        if images is not None:
            places = {**places, "images": images}
        if load_recipe(name).energies and self.sources.of("teacher") is None:
            raise UserError(f"preset {self.preset.name!r} has no teacher, which the student {name!r} needs")
        uses: tuple[str, ...] = ()
        if self.signal.hears(name, stage.training):
            more, uses, told = self.signal.told(stage, name)
            reads, places = (*reads, *more), {**places, **told}
        elif load_recipe(name).energies:
            more, taught = self.sources.inputs("teacher")
            reads, given = (*reads, *more), {**given, **taught}
            places = {**places, "teacher": self.sources.place("teacher")}
        # what it reads says whether its teacher is live
        facts = self._facts(name, seed, stage.training.model_copy(update={"live_teacher": False}))
        return Stage(
            id=label,
            kind="student",
            run="harness.stages.student:distil",
            version=student.STAGE_VERSION,
            config={**facts, "corpus": stage.corpus, "stage": stage.name},
            targets=(folder,),
            reads=(index, *reads),
            given=given,
            places=places,
            uses=uses,
            resumes=stage.training.save_every is not None,
        )


def corpus_places(source: CorpusSource, data_root: Path | None) -> dict[str, str]:
    """Return where a corpus's file, images and data root lie, as far as it has any; absolute paths.

    Raises:
        UserError: when it lies below a data root, and none was named.
    """
    if source.file is None:
        return {} if data_root is None or source.format == "embedded" else {"data_root": str(data_root)}
    if data_root is None:
        raise UserError(
            f"the corpus file {source.file} lies below a data root; name it with --data-root DIR (docs/real_runs.md)"
        )
    return {
        "file": str(data_root / source.file),
        "images": str(data_root / (source.images or Path(source.file).parent)),
    }
