"""Presets: one YAML file per experiment, checked against a schema; and the variants that recipes name.

A preset is a file of ``harness/presets/`` called by its name, or any file called by its path. ``extends: NAME`` takes over
another preset's fields; sections (mappings) are merged field by field, everything else is replaced.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PositiveInt,
    RootModel,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness import hub
from harness.base import Strict, UserError, parse, read_yaml, unknown
from harness.pretraining import Making
from harness.real import Assemble, CorpusSource, ModelSize, Requires, TrainingStage, Word
from harness.resources import DEFAULTS, Resources
from harness.signal_form import Signal
from students import registry
from students.options import DistilOptions
from students.recipe import RESERVED, Recipe, Variant
from students.recipe import parse as parse_recipe
from tasks.faults import Faults

FOLDER = Path(__file__).parent / "presets"
#: What a path to something inside an installed package starts with, in a preset.
PACKAGE = "package:"


def _model_name(name: str) -> str:
    """Check a given model's name: a row of the tables and a folder, not to be taken for a recipe or a reserved row."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError("a model's name is made of letters, digits, '_', '.' and '-', and starts with a letter or digit")
    if name in (*RESERVED, "tower", "ce", *registry.names("energies")):
        raise ValueError("this name stands for another row; choose another one")
    return name


#: A given model's name.
ModelName = Annotated[str, AfterValidator(_model_name)]
Rate = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]


class Train(Strict):
    """A model that the run makes itself."""

    train: Making


def _kind(source: object) -> str:
    if isinstance(source, Assemble) or (isinstance(source, Mapping) and "assemble" in source):
        return "assemble"
    return "train" if isinstance(source, Train | Mapping) else "path"


#: Where a model comes from. Told apart by a look, so that an error is about the form that was meant.
Source = Annotated[
    Annotated[str, Tag("path")] | Annotated[Train, Tag("train")] | Annotated[Assemble, Tag("assemble")], Discriminator(_kind)
]


class Models(Strict):
    """Where the models come from: ``package:ROOM/FOLDER``, a path to a Hugging Face folder, a hub id, or ``{train: {...}}``.

    Attributes:
        teacher, base: rows of every table; a preset that trains students needs both. A base may be ``{assemble: {...}}``:
            put together from published parts, which makes it no row, because nobody has trained it yet.
        tower: the vision tower that the others share, where the run makes it.
        external: further models, NAME: a path or a Hugging Face id, evaluated as they are; ``--model`` adds to them.
    """

    teacher: str | Train | None = None
    base: Source | None = None
    tower: str | Train | None = None
    external: dict[ModelName, str] = Field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The rows of a table that are given models: teacher and base, as far as there are any, then the external ones."""
        given = (role for role in RESERVED if not isinstance(getattr(self, role), Assemble | None))
        return (*given, *self.external)


class Data(Strict):
    """The training data: which split, how much of it, and what is injected into it.

    Attributes:
        split: of each protocol's source.
        label_noise: share of answers replaced by a wrong one (0..1).
        blindness: share of images that the teacher does not see (0..1).
        complementary: label noise only where the teacher is healthy; see :class:`tasks.faults.Faults`.
        blind_benchmarks: instead of ``blindness``, the benchmarks of which the teacher sees no image.
        blind_teacher: what it says then: one answer to the mean of all training images, or the mean probability over other
            images of the benchmark, drawn by ``seed`` (a teacher that knows that it does not know).
        images: how many images per benchmark, or None for all.
        seed: of the injections.
        options: further options of the source.
    """

    split: str = "train"
    label_noise: Rate = 0.0
    blindness: Rate = 0.0
    complementary: bool = False
    blind_benchmarks: tuple[str, ...] = ()
    blind_teacher: Literal["mean_image", "shuffled"] = "mean_image"
    images: PositiveInt | None = None
    seed: Seed = 0
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def faults(self) -> Faults:
        """What is injected."""
        return Faults(self.label_noise, self.blindness, self.complementary, self.blind_benchmarks, self.seed)

    @model_validator(mode="after")
    def _combination(self) -> Self:
        with _as_value_error():
            faults = self.faults
        if self.blind_teacher != "mean_image" and not faults.blinds:
            raise ValueError(
                f"blind_teacher is {self.blind_teacher!r} and nothing is blind; needed: blindness above 0, or blind_benchmarks"
            )
        return self


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Let pydantic report a :class:`UserError` with the file and the field."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from error


class Evaluation(Strict):
    """How the protocols are run.

    Attributes:
        batch_size: questions per batch.
        limit: how many whole clusters of each protocol; None: all.
        diagnostics: also compute what each model predicts at the gold answers. It keeps [tokens, vocabulary] numbers per
            question in memory, which full benchmarks and full vocabularies do not allow.
        pictures: how many images of each protocol go into the run folder for the report; None: all.
        incomplete: the data may hold fewer questions than the protocols expect; the report then says PARTIAL.
        dtype: of the weights of the models.
    """

    batch_size: PositiveInt = 64
    limit: PositiveInt | None = None
    diagnostics: bool = True
    pictures: Annotated[int, Field(ge=0)] | None = None
    incomplete: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"


class Preset(Strict):
    """One experiment.

    Attributes:
        name: also the default folder, ``runs/NAME``.
        title: one line, shown by ``--list`` and as the report's heading.
        description: a paragraph for the report: what is compared, on what, with what caveats.
        protocols: ``benchmark@protocol``, one per benchmark.
        models: given or trained.
        retrain: a YAML file (``package:...`` or a path) that says per role how the given models were made, which
            ``--retrain-teacher`` does again; None where they cannot be remade.
        training: of every student, on the prompts of ``protocols``' own train splits, all held in memory.
        corpora: data sets that are read row by row, by name.
        stages: instead of ``training``, of every student, on the corpora. A preset with neither trains nothing: given models
            are only evaluated.
        recipes: the students that ``--students all`` means; none where nothing is trained.
        seeds: the seeds that a run without ``--seeds`` does.
        threads: torch threads of each worker; part of every trained model's digest, because it changes the arithmetic.
        workers: how many stages run at once at most; None: as many as their resources allow. Changes only the time a run takes.
        resources: what a stage of each kind takes while it runs, where the usual does not fit; changes only what runs when.
        seconds: rough seconds per stage kind on two quiet cores, for estimates only.
        requires: what the machine must have.
        declared: sizes of models as published, by role or name (``teacher``, ``base``, ...), for the plan only.
        signal: in what form the teacher's signal is kept.
        cache_gb: GB (10^9 bytes) that caches may hold in the run folder; None for no bound. ``--cache-gb`` replaces it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    title: str
    description: str
    protocols: Annotated[tuple[str, ...], Field(min_length=1)]
    models: Models = Models()
    retrain: str | None = None
    data: Data = Data()
    training: DistilOptions | None = None
    corpora: dict[Word, CorpusSource] = Field(default_factory=dict)
    stages: tuple[TrainingStage, ...] = ()
    evaluation: Evaluation = Evaluation()
    recipes: tuple[str, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    threads: PositiveInt = 1
    workers: PositiveInt | None = None
    resources: dict[str, Resources] = Field(default_factory=dict)
    seconds: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    requires: Requires = Requires()
    declared: dict[str, ModelSize] = Field(default_factory=dict)
    cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    signal: Signal = Signal()

    @property
    def trains(self) -> bool:
        """Whether students are trained."""
        return self.training is not None or bool(self.stages)

    @property
    def taught(self) -> bool:
        """Whether students need a teacher: all do, but for students of labels alone on corpora."""
        return self.training is not None or any(name != "ce" for name in self.recipes)

    @field_validator("data")
    @classmethod
    def _known_benchmarks(cls, data: Data, info: ValidationInfo) -> Data:
        if "protocols" in info.data:  # else they are wrong themselves, which is the error to report
            with _as_value_error():
                data.faults.check([name.partition("@")[0] for name in info.data["protocols"]])
        return data

    @field_validator("resources")
    @classmethod
    def _known_kinds(cls, resources: dict[str, Resources]) -> dict[str, Resources]:
        for kind in resources:
            if kind not in DEFAULTS:
                raise ValueError(str(unknown("kind of stage", kind, DEFAULTS)))
        return resources

    @model_validator(mode="after")
    def _trains_or_not(self) -> Preset:
        if self.training is not None and self.stages:
            raise ValueError("'training' and 'stages' exclude each other: one teaches from memory, the other from corpora")
        if self.trains != bool(self.recipes):
            raise ValueError(
                "'training' (or 'stages') and 'recipes' go together; a preset with neither only evaluates given models"
            )
        if self.trains and (self.models.base is None or (self.models.teacher is None and self.taught)):
            raise ValueError("a preset that trains students needs models.teacher and models.base")
        return self

    @model_validator(mode="after")
    def _stages_and_corpora(self) -> Preset:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        for stage in self.stages:
            if stage.corpus not in self.corpora:
                raise ValueError(str(unknown(f"corpus of stage {stage.name!r}", stage.corpus, self.corpora)))
        for name in self.declared:
            known = {"teacher", "base", "tower", *self.models.external}
            if name not in known:
                raise ValueError(str(unknown("model in 'declared'", name, known)))
        return self


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package; a file that starts with "_" is what others extend."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml") if not p.name.startswith("_"))


def load_preset(name: str) -> Preset:
    """Load a preset by name, or by path when ``name`` ends in ``.yaml``.

    Raises:
        UserError: for an unknown name, a missing file, a field that is unknown or out of range, or ``extends`` in a circle.
    """
    path = _preset_path(name)
    return parse(Preset, _merged(path, ()), str(path))


def _preset_path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"preset file {path} does not exist")
        return path
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    return FOLDER / f"{name}.yaml"


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path}: 'extends' goes in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    value = dict(read_yaml(path, RootModel[dict[str, Any]]).root)
    parent = value.pop("extends", None)
    if parent is None:
        return value
    if not isinstance(parent, str):
        raise UserError(f"{path}: field 'extends' must name a preset, got {parent!r}")
    beside = path.parent / parent
    source = beside.resolve() if parent.endswith((".yaml", ".yml")) and beside.is_file() else _preset_path(parent)
    return _merge(_merged(source, (*seen, path)), value)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        # {train: ...} replaces a model as a whole: a path and a recipe for training have no fields in common
        merge = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = _merge(old, value) if merge and isinstance(old, Mapping) else value
    return result


def variant_names() -> list[str]:
    """Return the names of the variants that a recipe's third part may be."""
    return sorted(p.stem for p in (FOLDER / "variants").glob("*.yaml"))


def load_variant(name: str) -> Variant:
    """Load ``harness/presets/variants/NAME.yaml``.

    Raises:
        UserError: for an unknown name or a field that the schema does not know.
    """
    if name not in variant_names():
        raise unknown("variant", name, variant_names())
    return read_yaml(FOLDER / "variants" / f"{name}.yaml", Variant)


def load_recipe(text: str) -> Recipe:
    """Parse a recipe and make sure that its variant exists; see :func:`students.recipe.parse` for the errors."""
    return parse_recipe(text, variant_names())


def retrained(preset: Preset) -> Models:
    """Return the preset's models as the run would make them itself, for ``--retrain-teacher``.

    Raises:
        UserError: when the preset does not say how, or the file that says so is not there.
    """
    if preset.retrain is None:
        raise UserError(f"--retrain-teacher: preset {preset.name!r} does not say how its models are made (field 'retrain')")
    path = _resolve(preset.retrain)
    if not path.is_file():
        raise UserError(f"preset {preset.name!r}, field 'retrain': {path} does not exist")
    roles = read_yaml(path, RootModel[dict[str, Making]]).root
    return parse(Models, {role: {"train": making} for role, making in roles.items()}, str(path))


def is_hub_id(source: str) -> bool:
    """Say whether a model's source is a Hugging Face id, ``owner/name``: it is shaped like one and is no path here."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None and not _resolve(source).exists()


def model_path(source: str) -> Path:
    """Resolve where a given model lies: ``package:students/...``, a path, or a Hugging Face id whose files were fetched.

    Raises:
        UserError: when there is no such package or folder, or the hub's model is not on this machine.
    """
    path = hub.cached(source) if is_hub_id(source) else _resolve(source)
    if not (path / "config.json").is_file():
        raise UserError(f"model {source!r}: {path} is not a Hugging Face folder (it has no config.json)")
    return path


def _resolve(source: str) -> Path:
    """Turn ``package:ROOM/PATH`` or a path into an absolute path, which may not exist."""
    if not source.startswith(PACKAGE):
        return Path(source).expanduser().resolve()
    room, _, rest = source.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(room)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{source!r}: there is no package {room!r}")
    return Path(next(iter(spec.submodule_search_locations))) / rest
