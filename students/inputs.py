"""What a run hands to the distiller, packed or streamed, and the feed and the teacher that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.base import UserError, unknown
from students import taps, vocabulary
from students.blind import Blind
from students.data.conversations import Corpus
from students.data.pack import Encoded
from students.data.samples import TrainingSet
from students.feed import Feed, PackedFeed
from students.feed_stream import StreamFeed
from students.teachers import TeacherSignal
from students.voice import CachedVoice, Voice
from students.voice_live import PackedVoice, StreamVoice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from students.models._base import Adapter
    from students.options import DistilOptions
    from students.recipe import Recipe, Variant


@dataclass(frozen=True)
class Inputs:
    """What every student of a run shares, held in memory, its questions packed into rows.

    Attributes:
        base: checkpoint folder that the students start from.
        data: the samples.
        encoded: the samples' tokens, made with the base's processor.
        signal: the teacher's, needed by every channel but "ce" unless the teacher is live; with it, a "ce" student records
            teacher histograms too.
        teacher: checkpoint folder, for a live teacher and for energies that read more of the teacher than the signal holds.
        blind: what a live teacher says about blind samples; the signal knows what it was told. None for the mean image.
        vision: folder of stored features of the images, for models that have that tower; None where nothing is stored.
    """

    base: Path
    data: TrainingSet
    encoded: Encoded
    signal: TeacherSignal | None = None
    teacher: Path | None = None
    blind: Blind | None = None
    vision: Path | None = None


@dataclass(frozen=True)
class StreamInputs:
    """What every student of a run shares, read from a corpus row by row.

    Attributes:
        base: checkpoint folder that the students start from.
        corpus: the rows.
        teacher: checkpoint folder of the live teacher, needed by every channel but "ce".
        vision: folder of stored features of the images, for models that have that tower; None where nothing is stored.
    """

    base: Path
    corpus: Corpus
    teacher: Path | None = None
    vision: Path | None = None


def opened(
    given: Inputs | StreamInputs,
    recipe: Recipe,
    variant: Variant,
    options: DistilOptions,
    seed: int,
    adapter: Adapter,
    wanted: frozenset[str],
    read: Sequence[str],
    device: torch.device,
) -> tuple[Feed, Voice | None]:
    """Open the data and, where the recipe needs one, the teacher.

    Args:
        given: from the harness.
        recipe, variant, options, seed: of the training.
        adapter: the student.
        wanted: taps that energies read.
        read: features that the weighting reads.
        device: where both models are.

    Raises:
        UserError: for inputs that do not belong together, or a teacher that is missing.
    """
    for channel in variant.energies:
        if channel not in recipe.energies:
            raise unknown(f"channel in the variant of {recipe.name!r}:", channel, recipe.energies)
    # a live teacher costs a forward pass a step, so nobody loads one for histograms alone
    asked = bool(recipe.energies) or any(not name.startswith("student_") for name in read)
    dtype = torch.bfloat16 if options.teacher_dtype == "bfloat16" else torch.float32
    if isinstance(given, StreamInputs):
        if not asked:
            return StreamFeed(given.corpus, options, seed, adapter, vision=given.vision), None
        if given.teacher is None:
            raise UserError(
                f"recipe {recipe.name!r} needs a teacher checkpoint for: {', '.join(recipe.energies) or 'its weighting'}"
            )
        teacher = taps.frozen(given.teacher, device, dtype)
        return StreamFeed(given.corpus, options, seed, adapter, teacher, given.vision), StreamVoice(teacher, device, dtype)
    feed = PackedFeed(given.data, given.encoded, options, seed, adapter, given.vision)
    if options.live_teacher:
        if not asked:
            return feed, None
        if given.teacher is None:
            raise UserError(f"recipe {recipe.name!r} needs a teacher checkpoint, because live_teacher is on; none was given")
        return feed, PackedVoice(given.teacher, given.data, given.blind or Blind(), device, dtype, given.vision)
    if given.signal is None:
        if recipe.energies:
            raise UserError(f"recipe {recipe.name!r} needs a teacher signal for: {', '.join(recipe.energies)}")
        return feed, None
    live = _beside(given.signal, recipe, given, wanted, device, dtype) if wanted else None
    return feed, CachedVoice(given.signal, given.data, given.encoded, live, device)


def _beside(
    signal: TeacherSignal, recipe: Recipe, given: Inputs, wanted: frozenset[str], device: torch.device, dtype: torch.dtype
) -> taps.LiveTeacher:
    """Load the teacher where an energy reads more of it than its signal holds."""
    if given.teacher is None:
        raise UserError(
            f"recipe {recipe.name!r} reads {', '.join(sorted(wanted))} of the teacher; its checkpoint was not given"
        )
    return taps.LiveTeacher(given.teacher, given.data, device, signal.blind_teacher, dtype, given.vision)


def common_vocabulary(adapter: Adapter, voice: Voice | None) -> int | None:
    """Return V, the size of the vocabulary that student and teacher share; None without a teacher.

    Raises:
        UserError: naming tokens that differ.
    """
    if voice is None:
        return None
    return vocabulary.check(adapter.tokens(), voice.vocabulary, adapter.vocabulary_size, voice.vocabulary_size)
