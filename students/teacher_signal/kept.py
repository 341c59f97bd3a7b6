"""The teacher's projected vision tokens of each distinct image, computed once: what ``fd`` reads beside logits.

Its other taps are of each sample (attention) or as wide as the vocabulary (vision_logits); they need a live teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import open_array, write_json
from students import taps
from students.blind import Blind
from students.models._base import common_vision_tokens
from students.teacher_signal import codec
from students.teacher_signal.declared import KEPT
from students.teacher_signal.forms import WIDTH, Kind
from students.teacher_signal.keys import refuse_stale, signal_key, stream_key
from students.teacher_signal.reading import mapped, read_meta, read_names
from students.vision import pictures as seen

if TYPE_CHECKING:
    from students.data.conversations import Corpus
    from students.data.pack import Batch
    from students.data.samples import TrainingSet
    from students.models._base import Adapter

VERSION = 1
#: Images of a forward pass.
AT_ONCE = 32


def size(images: int, tokens: int, hidden: int, dtype: str) -> int:
    """Bytes of the projected vision tokens of some images."""
    return images * tokens * hidden * WIDTH[dtype]


@dataclass(frozen=True)
class Pictures:
    """Images by key, and how what goes in for them is made: keys -> pixels [n, 3, H, W], or features of a tower [n, p, C]."""

    keys: tuple[str, ...]
    pixels: Callable[[Sequence[str]], Tensor]


def of_samples(adapter: Adapter, data: TrainingSet, features: Path | None, half: bool) -> Pictures:
    """The images that samples show, and the mean image where a blind sample is shown it; or features of them."""
    table, _ = seen.table(adapter, data, features, half)
    keys = seen.wanted(data)
    mean = {key: seen.mean_image(table) for key in keys if key not in table}
    return Pictures(tuple(keys), lambda names: torch.stack([mean[key] if key in mean else table[key] for key in names]))


def of_corpus(adapter: Adapter, corpus: Corpus, features: Path | None, half: bool) -> Pictures:
    """The images that a corpus's rows show, each once, in the order in which they first come; or features of them."""
    keys = dict.fromkeys(key for index in np.flatnonzero(corpus.shows) for key in corpus[int(index)].images)
    rows, _ = seen.corpus(corpus, adapter, features, half)
    return Pictures(tuple(keys), lambda names: adapter.inputs([rows.picture(name) for name in names]))


def cache(
    adapter: Adapter, pictures: Pictures, out: Path, key: Mapping[str, str], progress: Callable[[int, int], None], dtype: Kind
) -> None:
    """Run tower and projector once over each image and write ``vision.npy`` [I, n_v, H], ``keys.json`` and ``meta.json``.

    Args:
        adapter: the teacher, frozen.
        pictures: the images.
        out: a folder.
        key: what they were made from.
        progress: called with finished and total images.
        dtype: what the teacher's weights are stored in, and its vision tokens.
    """
    device = next(adapter.model.parameters()).device
    n_v = common_vision_tokens(adapter, adapter)
    out.mkdir(parents=True, exist_ok=True)
    shape = (len(pictures.keys), n_v, adapter.hidden_size)
    kept_as = np.uint16 if dtype == "bfloat16" else np.float32
    array = open_array(out / "vision.npy", kept_as, shape)
    for start in range(0, shape[0], AT_ONCE):
        names = pictures.keys[start : start + AT_ONCE]
        with torch.inference_mode(), taps.thinking(device, getattr(torch, dtype)):
            found = adapter.vision(pictures.pixels(names).to(device))
        array[start : start + len(names)] = codec.bits(found, dtype)
        progress(start + len(names), shape[0])
    array.flush()
    write_json(out / "keys.json", list(pictures.keys))
    write_json(out / "meta.json", {"version": VERSION, "key": dict(key), "dtype": dtype, "shapes": {"vision": list(shape)}})


class KeptVision:
    """Vision tokens on disk, memory-mapped; stands in for a live teacher where an energy reads nothing else of it.

    Args:
        folder: what :func:`cache` wrote.
        expected_key: what it must have been made from.
        device: where tokens go.

    Raises:
        UserError: naming the file that is missing or truncated, or what it was made from that has changed.
    """

    def __init__(self, folder: Path, expected_key: Mapping[str, str], device: torch.device | str = "cpu") -> None:
        meta = read_meta(folder, (VERSION,))
        refuse_stale("the teacher's vision tokens", folder, meta["key"], expected_key)
        self.array: NDArray[Any] = mapped(folder, "vision", meta["shapes"])
        names = read_names(folder / "keys.json", len(self.array))
        self.place = {name: place for place, name in enumerate(names)}
        self.dtype: str = meta["dtype"]
        self.device = torch.device(device)

    def widths(self, wanted: Collection[str], student: Adapter) -> dict[str, tuple[int, int]]:
        """Return (student, teacher) size of the last axis of each tap.

        Raises:
            UserError: when the models make different numbers of tokens of an image.
        """
        if student.vision_tokens != self.array.shape[1]:
            raise taps.unequal(student.vision_tokens, self.array.shape[1])
        return {name: (student.tap_width(name), int(self.array.shape[2])) for name in sorted(wanted)}

    def tokens(self, keys: Sequence[str]) -> Tensor:
        """Return the vision tokens of images [I, n_v, H]."""
        found = codec.floats(self.array[[self.place[key] for key in keys]], self.dtype)
        return (found.to(torch.bfloat16) if self.dtype == "bfloat16" else found).to(self.device, non_blocking=True)

    def packed(self, members: Sequence[list[int]], images: Sequence[str | None]) -> dict[str, Tensor]:
        """Return what :meth:`students.taps.LiveTeacher.observe` does for packed rows of samples that show these images."""
        split = taps.Split(members, images)
        shown = [image for part in split.parts if (image := images[part[0]]) is not None]
        found = {"vision": self.tokens(shown), "group": split.group.to(self.device)}
        return found | {"source": split.source.to(self.device)} if split.mixed else found

    def streamed(self, batch: Batch, corpus: Corpus) -> dict[str, Tensor]:
        """Return what :func:`students.taps.pair` reads for a batch of a corpus's rows."""
        shown = [key for k, count in zip(batch.indices, batch.pictures, strict=True) for key in corpus[k].images[:count]]
        return {"vision": self.tokens(shown), "group": batch.image.to(self.device)}


def cache_samples(
    teacher: Path,
    data: TrainingSet,
    out: Path,
    progress: Callable[[int, int], None],
    *,
    device: str = "cpu",
    blind: Blind | None = None,
    dtype: Kind = "float32",
    features: Path | None = None,
) -> None:
    """Keep the vision tokens of the images that samples show the teacher; see :func:`cache`.

    Raises:
        UserError: where blind samples hear a mixture of answers, which has no one feature.
    """
    taps.refuse_mixture(data, str(blind or Blind()))
    adapter = taps.frozen(teacher, device, getattr(torch, dtype))
    cache(
        adapter,
        of_samples(adapter, data, features, dtype == "bfloat16"),
        out,
        signal_key(teacher, data, blind, dtype),
        progress,
        dtype,
    )


def cache_corpus(
    teacher: Path,
    corpus: Corpus,
    out: Path,
    progress: Callable[[int, int], None],
    *,
    device: str = "cpu",
    dtype: Kind = "float32",
    features: Path | None = None,
) -> None:
    """Keep the vision tokens of the images that a corpus's rows show; see :func:`cache`."""
    adapter = taps.frozen(teacher, device, getattr(torch, dtype))
    cache(
        adapter,
        of_corpus(adapter, corpus, features, dtype == "bfloat16"),
        out,
        stream_key(teacher, corpus, dtype=dtype),
        progress,
        dtype,
    )


def live_sizes(wanted: Collection[str], student: Adapter, samples: int, images: int, text: int) -> str:
    """Say what keeping the other taps would take, by the student's measures, which are about the teacher's.

    Args:
        wanted: names of taps.
        student: of the training.
        samples, images: how many there are.
        text: tokens of the samples' own text, all together.
    """
    n_v = student.vision_tokens or 0
    heads = int(student.text_config.num_attention_heads)
    each = {"attention": 4.0 * text * n_v * heads, "vision_logits": 4.0 * images * n_v * student.vocabulary_size}

    def said() -> Iterator[str]:
        for name in sorted(set(wanted) - KEPT):
            yield f"{name} of {samples:,} samples (about {each[name] / 1e9:.3g} GB)"

    return " and ".join(said())
