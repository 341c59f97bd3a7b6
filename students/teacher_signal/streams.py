"""One pass of the teacher over a corpus: what it says about every row's supervised tokens, for all students of it.

Rows are read whole, or as far as a live teacher would read them, in an order of like lengths, and tokens are kept in that
order: a row's are found by its place. A student's row that was cut takes the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import open_array, read_json, write_json
from students import taps, vocabulary
from students.data import tokenised
from students.data.conversations import NothingToLearn
from students.data.truncation import made
from students.teacher_signal import codec
from students.teacher_signal.appending import Appender
from students.teacher_signal.errors import Errors
from students.teacher_signal.forms import Form, Kind, Size
from students.teacher_signal.keys import stream_key
from students.teacher_signal.packed import Choice, chosen
from students.vision import pictures
from students.voice import entropies

if TYPE_CHECKING:
    from students.data.conversations import Corpus, Row
    from students.data.pack import Batch
    from students.models._base import Adapter

VERSION = 1
#: Arrays with one entry per token and per row, beside the distributions.
TOKENS: dict[str, Any] = {"labels": np.int32, "entropy": np.float32, "right": np.bool_}
ROWS = ("places", "prompt", "vision", "seen")
#: Rows whose tokens are counted to know how many all have, at most.
COUNTED = 512
#: Forward passes between two points that an interrupted pass is gone on from.
SAVE_EVERY = 64
_POINT = "point.json"


def cache(
    teacher: Path,
    corpus: Corpus,
    out: Path,
    progress: Callable[[int, int], None],
    *,
    rows: int = 8,
    device: str = "cpu",
    form: Choice | None = None,
    dtype: Kind = "float32",
    template: str | None = None,
    limit: int | None = None,
    features: Path | None = None,
    tokens: Path | None = None,
) -> Form:
    """Run the teacher once over all rows and write what students are told into ``out``; goes on where an attempt stopped.

    Args:
        teacher: checkpoint folder.
        corpus: S rows.
        out: folder for the distributions of T tokens over V as :func:`students.teacher_signal.codec.columns` names them;
            labels.npy int32, entropy.npy float32 (nats) and right.npy bool (the label is the most probable token) [T];
            places.npy int64 [S, 2] (first token and number of tokens of a row), prompt.npy float32 [S, H] (state at the last
            prompt position), vision.npy float32 [S, H] (mean projected vision token of its images), seen.npy bool [S];
            vocabulary.json (V tokens), meta.json.
        progress: called with finished and total rows.
        rows: of a forward pass.
        device: "cpu" or "cuda".
        form: how distributions are kept; None for "exact".
        dtype: what the teacher's weights are stored in.
        template: conversation format, for a family that has several.
        limit: tokens a row is cut to; None for whole rows.
        features: folder of stored features of the images, read where the teacher has that tower.
        tokens: folder of the corpus's tokens, read where the teacher reads like that.

    Returns:
        The form.

    Raises:
        UserError: for a checkpoint, a row or an image that cannot be read.
        FloatingPointError: naming rows, when the teacher says something that is not a number.
    """
    adapter = _opened(teacher, device, getattr(torch, dtype), template)
    names = vocabulary.check(adapter.tokens(), adapter.tokens(), adapter.vocabulary_size, adapter.vocabulary_size)
    seen, _ = pictures.corpus(corpus, adapter, features, dtype == "bfloat16")
    reader = _Reader(seen, adapter, limit, tokens)
    size = Size(reader.tokens(), len(corpus), names, adapter.hidden_size, dtype)
    kept = chosen(form, size)
    out.mkdir(parents=True, exist_ok=True)
    key = stream_key(teacher, corpus, template, limit, dtype)
    asked = _Asked(adapter, names, torch.device(device), getattr(torch, dtype))
    parts = reader.parts(rows)
    with _Writing(out, kept, size, key) as writing:
        for number, (indices, batch) in enumerate(reader.batches(parts[writing.done :]), start=writing.done + 1):
            if batch is not None:
                writing.add(indices, asked(batch), corpus)
            if number % SAVE_EVERY == 0:
                writing.save(number)
            progress(min(number * rows, len(corpus)), len(corpus))
        shapes, errors = writing.finish()
    write_json(out / "vocabulary.json", list(adapter.tokens()))
    facts = {"version": VERSION, "key": key, "form": kept.__dict__, "shapes": shapes, "errors": errors}
    write_json(out / "meta.json", {**facts, "pools": adapter.vision_tokens is not None})
    (out / _POINT).unlink(missing_ok=True)
    return kept


def count(
    teacher: Path,
    corpus: Corpus,
    template: str | None = None,
    limit: int | None = None,
    dtype: Kind = "float32",
    tokens: Path | None = None,
) -> int:
    """Count the supervised tokens of a corpus as the teacher reads it; about, where it has more rows than COUNTED.

    The arguments are those of :func:`cache`.
    """
    return _Reader(corpus, _opened(teacher, "cpu", getattr(torch, dtype), template), limit, tokens).tokens()


def _opened(teacher: Path, device: str, dtype: torch.dtype, template: str | None) -> Any:
    adapter: Any = taps.frozen(teacher, device, dtype)
    if template is not None and hasattr(type(adapter), "template"):
        adapter.template = template
    return adapter


class _Reader:
    """Rows of a corpus as the teacher reads them."""

    def __init__(self, corpus: Corpus, adapter: Adapter, limit: int | None, tokens: Path | None) -> None:
        self.corpus, self.adapter, self.limit = corpus, adapter, limit
        self.whole, _ = tokenised.opened(tokens, corpus, adapter)
        # longest first, so that too little memory is noticed at once
        self.order = np.lexsort((np.arange(len(corpus)), corpus.lengths, corpus.shows))[::-1]

    def row(self, index: int) -> Row | None:
        """Read a row; None where the limit leaves nothing of it, which a student that asks for it will hear."""
        conversation = self.corpus[index]
        try:
            shown = pictures.read(self.corpus, conversation.images)
            return made(self.adapter, conversation, shown, self.limit, self.whole, index)
        except NothingToLearn:
            return None

    def tokens(self) -> int:
        """Count the supervised tokens: of all rows where they are few, else from rows at a regular distance in the order."""
        count = len(self.order)
        picked = self.order if count <= COUNTED else self.order[np.linspace(0, count - 1, COUNTED).astype(np.int64)]
        found = sum(self._supervised(int(index)) for index in picked)
        return int(np.ceil(found * count / len(picked)))

    def _supervised(self, index: int) -> int:
        """Count a row's supervised tokens; without its images where its tokens are known."""
        whole = None if self.whole is None else self.whole[index]
        if whole is not None:
            return int(whole.supervised[: self.limit].sum())
        row = self.row(index)
        return 0 if row is None else int(row.supervised.sum())

    def parts(self, rows: int) -> list[list[int]]:
        """Return the rows of each forward pass."""
        return [[int(k) for k in self.order[start : start + rows]] for start in range(0, len(self.order), rows)]

    def batches(self, parts: Sequence[list[int]]) -> Iterator[tuple[list[int], Batch | None]]:
        """Yield the row numbers and the batch of each part, reading one ahead; no batch where no row has anything to learn."""
        with ThreadPoolExecutor(1, "rows") as thread:
            ahead = None
            for number, part in enumerate(parts):
                found = ahead.result() if ahead is not None else self._batch(part)
                ahead = thread.submit(self._batch, parts[number + 1]) if number + 1 < len(parts) else None
                yield found

    def _batch(self, part: list[int]) -> tuple[list[int], Batch | None]:
        found = [(index, row) for index in part if (row := self.row(index)) is not None]
        indices = [index for index, _ in found]
        return indices, self.adapter.collate([row for _, row in found], indices) if found else None


@dataclass(frozen=True)
class _Answer:
    """What the teacher says about B rows and N tokens, on the host; ``counts`` are of each row's tokens."""

    logits: Tensor
    labels: NDArray[np.int64]
    counts: NDArray[np.int64]
    entropy: NDArray[np.float32]
    right: NDArray[np.bool_]
    prompt: NDArray[np.float32]
    vision: NDArray[np.float32]
    seen: NDArray[np.bool_]


@dataclass(frozen=True)
class _Asked:
    """The teacher, ready to be asked: its adapter, V, where it is and what its weights are stored in."""

    adapter: Adapter
    width: int
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> _Answer:
        adapter, there = self.adapter, batch.to(self.device)
        wanted = frozenset({"vision"}) if adapter.vision_tokens is not None else frozenset[str]()
        with taps.thinking(self.device, self.dtype):
            hidden, found = adapter.observe(there, wanted)
            logits = adapter.head(adapter.supervised(hidden, there))[:, : self.width].float()
        prompt = adapter.prompt_state(hidden, there).float()
        if wanted:
            vision, seen = taps.pooled(found["vision"], there)
        else:
            vision, seen = torch.zeros_like(prompt), there.image >= 0
        return _Answer(
            logits,
            batch.labels.numpy(),
            np.bincount(batch.sample.numpy(), minlength=len(batch.indices)),
            entropies(logits).cpu().numpy(),
            (logits.argmax(-1) == there.labels).cpu().numpy(),
            prompt.cpu().numpy(),
            vision.cpu().numpy(),
            seen.cpu().numpy(),
        )


class _Writing:
    """The arrays of a signal, as far as an earlier attempt came, and where it stopped.

    Attributes:
        done: how many passes are already written.
    """

    def __init__(self, out: Path, form: Form, size: Size, key: dict[str, str]) -> None:
        self._out, self._form = out, form
        self._facts = {"key": key, "form": form.__dict__}
        point = self._point()
        self.done = int(point["passes"]) if point else 0
        tokens = int(point["tokens"]) if point else None
        wanted = codec.columns(form, size.vocabulary) | {name: (dtype, ()) for name, dtype in TOKENS.items()}
        self._tokens = {name: Appender(out / f"{name}.npy", dtype, shape, tokens) for name, (dtype, shape) in wanted.items()}
        states = (size.samples, size.hidden)
        shapes: dict[str, Any] = {
            "places": (np.int64, (size.samples, 2)),
            "prompt": (np.float32, states),
            "vision": (np.float32, states),
            "seen": (np.bool_, (size.samples,)),
        }
        paths = {name: out / f"{name}.npy" for name in ROWS}
        self._rows = {
            name: np.load(paths[name], mmap_mode="r+") if point else open_array(paths[name], dtype, shape)
            for name, (dtype, shape) in shapes.items()
        }
        self._errors = None if form.name == "exact" else Errors(form, size.tokens, size.vocabulary)
        if point and self._errors is not None:
            self._errors.restore(point["errors"])

    def _point(self) -> dict[str, Any] | None:
        """Return where an earlier attempt at the same stopped."""
        path = self._out / _POINT
        found = read_json(path) if path.is_file() else None
        if found is None or any(found.get(name) != value for name, value in self._facts.items()):
            return None
        return dict(found)

    def add(self, indices: Sequence[int], answer: _Answer, corpus: Corpus) -> None:
        """Append what was said about some rows."""
        self._check(indices, answer, corpus)
        first = self._tokens["labels"].rows
        for part in codec.chunks(len(answer.labels), answer.logits.shape[1]):
            found = codec.encode(self._form, answer.logits[part])
            for name, array in found.items():
                self._tokens[name].add(array)
            if self._errors is not None:
                self._errors.add(answer.logits[part].cpu(), found)
        for name in TOKENS:
            self._tokens[name].add(getattr(answer, name))
        starts = first + np.cumsum(answer.counts) - answer.counts
        self._rows["places"][list(indices)] = np.stack([starts, answer.counts], 1)
        for name in ("prompt", "vision", "seen"):
            self._rows[name][list(indices)] = getattr(answer, name)

    @staticmethod
    def _check(indices: Sequence[int], answer: _Answer, corpus: Corpus) -> None:
        broken = np.flatnonzero(~np.isfinite(answer.entropy))
        if len(broken):
            owners = np.unique(np.repeat(np.arange(len(indices)), answer.counts)[broken])
            named = ", ".join(corpus[indices[k]].id for k in owners[:5].tolist())
            raise FloatingPointError(f"the teacher is not finite on {len(owners)} row(s) of corpus {corpus.name!r}: {named}")

    def save(self, passes: int) -> None:
        """Write the point after so many passes."""
        for array in self._tokens.values():
            array.flush()
        for mapped in self._rows.values():
            mapped.flush()
        state = self._errors.state() if self._errors is not None else None
        tokens = self._tokens["labels"].rows
        write_json(self._out / _POINT, {**self._facts, "passes": passes, "tokens": tokens, "errors": state})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for array in self._tokens.values():
            array.close()

    def finish(self) -> tuple[dict[str, list[int]], dict[str, Any] | None]:
        """Return the arrays' shapes, and the errors of a form that is not exact."""
        shapes = {name: array.finish() for name, array in self._tokens.items()}
        for name, mapped in self._rows.items():
            mapped.flush()
            shapes[name] = list(mapped.shape)
        return shapes, None if self._errors is None else self._errors.result()
