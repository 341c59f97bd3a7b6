"""What a run hands to the distiller, packed or streamed, and the feed and the teacher that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.base import UserError, unknown
from students import taps, vocabulary
from students.blind import Blind
from students.data.conversations import Corpus
from students.data.pack import Encoded
from students.data.samples import TrainingSet
from students.feed import Feed, PackedFeed
from students.feed_stream import StreamFeed
from students.teacher_signal import codec
from students.teacher_signal.declared import KEPT
from students.teacher_signal.forms import Form
from students.teacher_signal.kept import KeptVision, live_sizes
from students.teacher_signal.reading import TeacherSignal
from students.teacher_signal.stream_reading import StreamSignal
from students.voice import CachedStreamVoice, CachedVoice, Voice
from students.voice_live import PackedVoice, StreamVoice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

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
        kept: the teacher's vision tokens, for energies that read them; None where they are not kept.
    """

    base: Path
    data: TrainingSet
    encoded: Encoded
    signal: TeacherSignal | None = None
    teacher: Path | None = None
    blind: Blind | None = None
    vision: Path | None = None
    kept: KeptVision | None = None


@dataclass(frozen=True)
class StreamInputs:
    """What every student of a run shares, read from a corpus row by row.

    Attributes:
        base: checkpoint folder that the students start from.
        corpus: the rows.
        teacher: checkpoint folder, for a live teacher and for energies that read more of the teacher than is kept.
        vision: folder of stored features of the images, for models that have that tower; None where nothing is stored.
        signal: the teacher's, needed by every channel but "ce" unless the teacher is live.
        kept: the teacher's vision tokens, for energies that read them; None where they are not kept.
        tokens: folder of the corpus's tokens, for models that read like the base; None where nothing is stored.
    """

    base: Path
    corpus: Corpus
    teacher: Path | None = None
    vision: Path | None = None
    signal: StreamSignal | None = None
    kept: KeptVision | None = None
    tokens: Path | None = None


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
            return StreamFeed(given.corpus, options, seed, adapter, vision=given.vision, tokens=given.tokens), None
        return _stream(given, recipe, options, seed, adapter, wanted, device, dtype)
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
    _common_bins(given.signal.form, given.signal.more, given.signal.vocabulary, adapter)
    if wanted and wanted <= KEPT and given.kept is not None:
        return feed, CachedVoice(given.signal, given.data, given.encoded, None, device, given.kept)
    live = _beside(given.signal, recipe, given, wanted, adapter, device, dtype) if wanted else None
    return feed, CachedVoice(given.signal, given.data, given.encoded, live, device)


def _stream(
    given: StreamInputs,
    recipe: Recipe,
    options: DistilOptions,
    seed: int,
    adapter: Adapter,
    wanted: frozenset[str],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Feed, Voice]:
    """Open a corpus whose teacher is asked: its signal where that has all that is read, else the teacher itself."""
    kept = bool(wanted) and wanted <= KEPT and given.kept is not None
    if given.signal is not None and not options.live_teacher and (kept or not wanted):
        _common_bins(given.signal.form, given.signal.said, given.signal.vocabulary, adapter)
        feed = StreamFeed(given.corpus, options, seed, adapter, vision=given.vision, tokens=given.tokens)
        return feed, CachedStreamVoice(given.signal, given.corpus, device, given.kept if kept else None)
    if given.teacher is None:
        if given.signal is not None and wanted:
            images = int(np.asarray(given.corpus.shows, np.int64).sum())
            raise _needs_live(recipe, wanted, adapter, len(given.corpus), images, int(given.signal.rows["places"][:, 1].sum()))
        raise UserError(
            f"recipe {recipe.name!r} needs a teacher checkpoint for: {', '.join(recipe.energies) or 'its weighting'}"
        )
    teacher = taps.frozen(given.teacher, device, dtype)
    feed = StreamFeed(given.corpus, options, seed, adapter, teacher, given.vision, given.tokens)
    return feed, StreamVoice(teacher, device, dtype)


def _beside(
    signal: TeacherSignal,
    recipe: Recipe,
    given: Inputs,
    wanted: frozenset[str],
    adapter: Adapter,
    device: torch.device,
    dtype: torch.dtype,
) -> taps.LiveTeacher:
    """Load the teacher where an energy reads more of it than is kept."""
    if given.teacher is None:
        text = sum(len(ids) - start for ids, start in zip(given.encoded.prompts, given.encoded.prefix, strict=True))
        images = len({s.image for s in given.data if s.image is not None})
        raise _needs_live(recipe, wanted, adapter, len(given.data), images, text + int(signal.offsets[-1]))
    return taps.LiveTeacher(given.teacher, given.data, device, signal.blind_teacher, dtype, given.vision)


def _needs_live(recipe: Recipe, wanted: frozenset[str], adapter: Adapter, samples: int, images: int, text: int) -> UserError:
    """Build the error for taps that are not kept and a teacher that was not given, with the size that keeping would take."""
    return UserError(
        f"recipe {recipe.name!r} reads {', '.join(sorted(wanted))} of the teacher; its checkpoint was not given, and the signal"
        f" does not keep that: {live_sizes(wanted, adapter, samples, images, text)}"
    )


def _common_bins(form: Form, arrays: Mapping[str, NDArray[Any]], names: Sequence[str], adapter: Adapter) -> None:
    """Refuse a signal whose bins name tokens that the student does not have: their probability cannot be taken out again."""
    if form.k is None:
        return
    shared = vocabulary.check(adapter.tokens(), names, adapter.vocabulary_size, len(names))
    token = codec.beyond(form, arrays["tokens"], shared) if shared < len(names) else None
    if token is not None:
        raise UserError(
            f"among the teacher's {form.k} likeliest tokens is {names[token]!r}, which the student does not have; give the"
            " signal the form exact or half (preset: signal), or run the teacher beside the student (--live-teacher)"
        )


def common_vocabulary(adapter: Adapter, voice: Voice | None) -> int | None:
    """Return V, the size of the vocabulary that student and teacher share; None without a teacher.

    Raises:
        UserError: naming tokens that differ.
    """
    if voice is None:
        return None
    return vocabulary.check(adapter.tokens(), voice.vocabulary, adapter.vocabulary_size, voice.vocabulary_size)
