"""What real models and real data add to a preset: corpora, training in stages, assembled bases, needs and declared sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

import students.models
from harness.base import Strict, unknown
from students.options import DistilOptions

#: A word that becomes a folder: of a corpus, or of a stage of the training.
Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


def assembled() -> list[str]:
    """Return the families that can be put together from parts."""
    folder = Path(students.models.__file__).parent
    return sorted(path.stem.removeprefix("_").removesuffix("_assemble") for path in folder.glob("_*_assemble.py"))


class CorpusSource(Strict):
    """Rows to learn from, which are read one at a time; the stage ``corpus/NAME`` indexes them into ``corpora/NAME``.

    Attributes:
        format: ``llava`` (a JSON list of conversations beside a folder of images), ``scienceqa`` (its train split), or
            ``embedded`` (the miniature suite's train split).
        file: of a ``llava`` corpus, below ``--data-root``.
        images: the folder of its images, below ``--data-root``.
        rows: how many its publisher counts; for the plan only, until the corpus was indexed.
        words: mean words of a row's text, for the plan only.
        gib: size of file and images in GiB, for the plan only.
        source: where to get it: a hub id or the name of a page.
        options: further options of the format.
    """

    format: Literal["llava", "scienceqa", "embedded"]
    file: str | None = None
    images: str | None = None
    rows: PositiveInt | None = None
    words: PositiveFloat | None = None
    gib: PositiveFloat | None = None
    source: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _file_or_none(self) -> Self:
        if (self.format == "llava") != (self.file is not None):
            raise ValueError("'file' belongs to a corpus of format llava, and to no other")
        if self.images is not None and self.format != "llava":
            raise ValueError("'images' belongs to a corpus of format llava, and to no other")
        return self


class TrainingStage(Strict):
    """One stage of a student's training; it starts from what the stage before it made, the first from ``models.base``.

    Attributes:
        name: of the stage; its checkpoint lies in ``earlier/RECIPE/seedN/NAME``, the last stage's where every student's does.
        corpus: which of the preset's corpora it learns from.
        training: how.
    """

    name: Word
    corpus: Word
    training: DistilOptions


class Parts(Strict):
    """Parts of a model that nobody published in one piece: each a path or a Hugging Face id.

    Attributes:
        family: whose file ``students/models/_FAMILY_assemble.py`` knows how to put them together.
        language: a language model with its tokenizer.
        tower: a vision tower with its image processor.
        projector: the weights of a trained projector, or None for one with random weights, which the training has to teach.
        seed: of the random projector.
    """

    family: str = "mobilevlm"
    language: str
    tower: str
    projector: str | None = None
    seed: NonNegativeInt = 0

    @field_validator("family")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in assembled():
            raise ValueError(str(unknown("family that is put together here", name, assembled())))
        return name

    @property
    def sources(self) -> dict[str, str]:
        """The parts that are given, by name."""
        named = {"language": self.language, "tower": self.tower, "projector": self.projector}
        return {name: source for name, source in named.items() if source is not None}


class Assemble(Strict):
    """A model that the run puts together from published parts, before any training."""

    assemble: Parts


class Requires(Strict):
    """What a machine needs before a run starts.

    Attributes:
        gpu: a GPU that torch can use.
        gpu_gb: its memory in GB (1e9 bytes); ``--dry-run`` shows what it is made of.
    """

    gpu: bool = False
    gpu_gb: PositiveFloat | None = None

    @model_validator(mode="after")
    def _memory_of_a_gpu(self) -> Self:
        if self.gpu_gb is not None and not self.gpu:
            raise ValueError("gpu_gb is the memory of a GPU: set gpu to true as well")
        return self


class ModelSize(Strict):
    """How large a model is, as its publisher says: used for the plan until its own files are on this machine.

    Attributes:
        parameters: all of them.
        tower: those of the vision tower.
        hidden, layers, intermediate, vocabulary: of the language model.
        vision_tokens: an image becomes this many tokens.
        gib: size of its files in GiB.
    """

    parameters: PositiveInt
    tower: NonNegativeInt
    hidden: PositiveInt
    layers: PositiveInt
    intermediate: PositiveInt
    vocabulary: PositiveInt
    vision_tokens: PositiveInt
    gib: PositiveFloat
