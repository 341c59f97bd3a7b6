"""One pass of the teacher over packed samples: what it says about every supervised token, written as it is said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.base import open_array, write_json
from students.blind import Blind, others
from students.teacher_signal.forms import Form, Kind, Size
from students.teacher_signal.keys import signal_key

if TYPE_CHECKING:
    import torch

    from students.data.pack import Encoded
    from students.data.samples import TrainingSet
    from students.models._base import Adapter

VERSION = 3
#: Files that every form has beside those of its distributions.
FACTS = ("labels", "offsets", "entropy", "correct", "prompt", "vision", "seen")
_T = TypeVar("_T")
#: A form, or who chooses it when it is known what has to be kept.
Choice = Form | Callable[[Size], Form]


def chosen(form: Choice | None, size: Size) -> Form:
    """Return the form that is meant, the exact one where none is named.

    Raises:
        UserError: for a k that the vocabulary does not allow.
    """
    found = size.exact() if form is None else form if isinstance(form, Form) else form(size)
    found.check(size.vocabulary)
    return found


def cache(
    teacher: Path,
    data: TrainingSet,
    out: Path,
    progress: Callable[[int, int], None],
    *,
    rows: int = 24,
    turns: int = 8,
    device: str = "cpu",
    blind: Blind | None = None,
    form: Choice | None = None,
    dtype: Kind = "float32",
    features: Path | None = None,
) -> Form:
    """Run the teacher once over all samples and write what students are told into ``out``.

    Blind samples are answered as ``blind`` says; of a mixture, prompt and vision are the means over its images. ``correct``
    compares the greedy reply with the clean answer; where the label is noisy that takes a second pass, because the noisy
    label would be its context. Entropy and correctness are those of the exact distributions, whatever is kept of them.

    Args:
        teacher: checkpoint folder.
        data: the samples, in the order that students number them.
        out: folder for the distributions of T tokens over V (the real vocabulary, without a padded head's other rows; of a
            mixture, log-probabilities) as :func:`students.teacher_signal.codec.columns` names them, labels.npy int64 [T],
            offsets.npy int64 [S + 1], entropy.npy float32 [S] (nats, mean over a sample's tokens), correct.npy bool [S],
            prompt.npy float32 [S, H] (state at the last prompt position), vision.npy float32 [S, H] (mean over the projected
            vision tokens of the image shown to the teacher), seen.npy bool [S] (whether there is one; vision is 0 and means
            nothing elsewhere), ids.json, vocabulary.json (V tokens), meta.json (with the errors of a form that is not exact).
        progress: called with finished and total passes over a sample.
        rows: packed rows per forward pass.
        turns: most questions in one row.
        device: "cpu" or "cuda".
        blind: what blind samples are told; None for the mean image.
        form: how distributions are kept; None for "exact".
        dtype: what the teacher's weights are stored in.
        features: folder of stored features of the images, read where the teacher has that tower.

    Returns:
        The form.

    Raises:
        UserError: for a checkpoint that cannot be read, or too few images to shuffle.
        FloatingPointError: naming samples, when the teacher says something that is not a number.
    """
    import torch

    from students import taps, vocabulary
    from students.data.pack import encode
    from students.vision import pictures

    blind = blind or Blind()
    adapter = taps.frozen(teacher, device, getattr(torch, dtype))
    tokens = vocabulary.tokens(adapter.processor.tokenizer)
    encoded = encode(data.samples, adapter.processor)
    table, _ = pictures.table(adapter, data, features, dtype == "bfloat16")
    views, table = _views(data, encoded, table, blind)
    noisy = [k for k, (a, c) in enumerate(zip(encoded.answers, encoded.clean, strict=True)) if not np.array_equal(a, c)]
    total = sum(len(view) for view in views) + sum(len(views[k]) for k in noisy)
    ask = _Ask(adapter, table, len(tokens), rows, turns, _ticker(progress, total))
    out.mkdir(parents=True, exist_ok=True)
    offsets = _offsets(encoded.answers)
    said_in: Kind = "float32" if any(len(view) > 1 for view in views) else dtype  # a mixture is computed in float32
    size = Size(int(offsets[-1]), len(data), len(tokens), adapter.hidden_size, said_in)
    kept = chosen(form, size)
    writer = _Writer(out, kept, size)
    entropy, correct, states, vision = _heard(ask, encoded, views, noisy, lambda k, said: writer.put(int(offsets[k]), said))
    _check(entropy, data, teacher)
    shapes, errors = writer.close()
    arrays: dict[str, NDArray[Any]] = {
        "labels": np.concatenate(encoded.answers), "offsets": offsets, "entropy": entropy, "correct": correct,
        "prompt": states, "vision": vision, "seen": np.array([s.image is not None for s in data]),
    }  # fmt: skip
    shapes |= _saved(out, arrays)
    write_json(out / "ids.json", [s.id for s in data])
    write_json(out / "vocabulary.json", list(tokens))
    key = signal_key(teacher, data, blind, dtype)
    write_json(out / "meta.json", {"version": VERSION, "key": key, "form": kept.__dict__, "shapes": shapes, "errors": errors})
    return kept


def _ticker(progress: Callable[[int, int], None], total: int) -> Callable[[], None]:
    """Return what counts passes over a sample and tells of every 512th."""
    done = itertools.count(1)

    def tick() -> None:
        if (now := next(done)) % 512 == 0 or now == total:
            progress(now, total)

    return tick


def _check(entropy: NDArray[np.float32], data: TrainingSet, teacher: Path) -> None:
    bad = [data.samples[k].id for k in np.flatnonzero(~np.isfinite(entropy))]
    if bad:
        raise FloatingPointError(f"the teacher {teacher} is not finite on {len(bad)} sample(s): {', '.join(bad[:5])}")


def _saved(out: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, list[int]]:
    """Write arrays by name; return their shapes."""
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", array)
    return {name: list(array.shape) for name, array in arrays.items()}


def _heard(
    ask: _Ask,
    encoded: Encoded,
    views: Sequence[tuple[str | None, ...]],
    noisy: Sequence[int],
    put: Callable[[int, NDArray[np.float32]], None],
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    """Ask about all S samples, and about the noisy ones again; ``put`` hears the logits of each sample by its number.

    Returns:
        Entropy [S], whether the reply is the clean answer [S], prompt states [S, H] and mean vision tokens [S, H].
    """
    entropy, correct = np.zeros(len(views), np.float32), np.zeros(len(views), np.bool_)

    def listen(k: int, logits: NDArray[np.float32]) -> None:
        put(k, logits)
        entropy[k] = _entropy(logits)
        correct[k] = _is_reply(logits, encoded.clean[k])

    states, vision = ask(encoded, views, listen)
    if noisy:
        part = _chosen(replace(encoded, answers=encoded.clean), [(k, encoded.images[k]) for k in noisy])

        def judge(place: int, logits: NDArray[np.float32]) -> None:
            correct[noisy[place]] = _is_reply(logits, part.answers[place])

        ask(part, [views[k] for k in noisy], judge)
    return entropy, correct, states, vision


def _views(
    data: TrainingSet, encoded: Encoded, table: Mapping[str, torch.Tensor], blind: Blind
) -> tuple[list[tuple[str | None, ...]], Mapping[str, torch.Tensor]]:
    """Return per sample the images that the teacher is shown one after the other, and the table with their pixels."""
    from students.taps import shown

    if blind.says == "mean_image":
        encoded, table = shown(data, encoded, table)
        return [(image,) for image in encoded.images], table
    drawn = others(data, blind.seed)
    return [drawn[s.benchmark, s.image] if s.blind and s.image is not None else (s.image,) for s in data], table


def _offsets(answers: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(answer) for answer in answers])]).astype(np.int64)


def _is_reply(spoken: NDArray[np.float32], answer: NDArray[np.int64]) -> bool:
    """Whether the most probable tokens of a sample are its answer, as far as they go."""
    return bool(np.array_equal(spoken.argmax(-1), answer))


def _chosen(encoded: Encoded, asked: Sequence[tuple[int, str | None]]) -> Encoded:
    """Return the samples ``asked`` for, by (number, image to show)."""

    def of(values: Sequence[_T]) -> tuple[_T, ...]:
        return tuple(values[k] for k, _ in asked)

    return replace(
        encoded,
        prompts=of(encoded.prompts),
        answers=of(encoded.answers),
        clean=of(encoded.clean),
        prefix=of(encoded.prefix),
        images=tuple(image for _, image in asked),
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _entropy(logits: NDArray[np.float32]) -> float:
    """Mean entropy in nats of [tokens, V] logits; a banned (-inf) token adds nothing."""
    log_p = _log_softmax(logits)
    return float(-(np.exp(log_p) * np.where(np.isneginf(log_p), 0.0, log_p)).sum(-1).mean())


class _Writer:
    """Puts distributions in their places on disk, many tokens at a time, and measures what their form changes."""

    def __init__(self, out: Path, form: Form, size: Size) -> None:
        from students.teacher_signal import codec, errors

        self._codec, self._form, self._width = codec, form, size.vocabulary
        wanted = codec.columns(form, size.vocabulary)
        self._arrays = {n: open_array(out / f"{n}.npy", dtype, (size.tokens, *shape)) for n, (dtype, shape) in wanted.items()}
        self._errors = None if form.name == "exact" else errors.Errors(form, size.tokens, size.vocabulary)
        self._waiting: list[tuple[int, NDArray[np.float32]]] = []
        self._count = 0

    def put(self, start: int, logits: NDArray[np.float32]) -> None:
        """Write a sample's logits [tokens, V] from token ``start`` on, now or a little later."""
        self._waiting.append((start, logits))
        self._count += logits.size
        if self._count >= self._codec.AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import torch

        if not self._waiting:
            return
        logits = torch.from_numpy(np.concatenate([logits for _, logits in self._waiting]))
        places = np.concatenate([np.arange(start, start + len(part)) for start, part in self._waiting])
        found = self._codec.encode(self._form, logits)
        for name, array in self._arrays.items():
            array[places] = found[name]
        if self._errors is not None:
            self._errors.add(logits, found)
        self._waiting, self._count = [], 0

    def close(self) -> tuple[dict[str, list[int]], dict[str, Any] | None]:
        """Return the arrays' shapes, and the errors of a form that is not exact."""
        self._flush()
        for array in self._arrays.values():
            array.flush()
        shapes = {name: list(array.shape) for name, array in self._arrays.items()}
        return shapes, None if self._errors is None else self._errors.result()


@dataclass(frozen=True)
class _Ask:
    """The teacher, ready to be asked about samples: its adapter, pixels by image, V, rows a pass, turns a row, progress."""

    adapter: Adapter
    pixels: Mapping[str, torch.Tensor]
    width: int
    rows: int
    turns: int
    tick: Callable[[], None]

    def __call__(
        self,
        encoded: Encoded,
        views: Sequence[tuple[str | None, ...]],
        listen: Callable[[int, NDArray[np.float32]], None],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Ask about every sample once per view (image to show), and mix the answers.

        Args:
            encoded: the samples.
            views: of each.
            listen: called with each sample's number and logits [tokens, V] where there is one view, log mean probabilities
                where there are more.

        Returns:
            Prompt states [S, H] and pooled vision tokens [S, H], means over the views.
        """
        state = np.zeros((len(encoded), self.adapter.hidden_size), np.float32)
        vision = np.zeros_like(state)
        asked = [(k, image) for k, view in enumerate(views) for image in view]
        mixing: dict[int, tuple[int, NDArray[np.float32]]] = {}
        for number, logits, prompt, pooled in self._speak(_chosen(encoded, asked)):
            k = asked[number][0]
            count = len(views[k])
            state[k] += prompt / count
            vision[k] += pooled / count
            if count == 1:
                listen(k, logits)
            else:
                heard, mixed = mixing.pop(k, (0, np.full(logits.shape, -np.inf, np.float32)))
                mixed = np.logaddexp(mixed, _log_softmax(logits) - np.log(count)).astype(np.float32)
                if heard + 1 == count:
                    listen(k, mixed)
                else:
                    mixing[k] = (heard + 1, mixed)
            self.tick()
        return state, vision

    def _speak(self, encoded: Encoded) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
        """Yield (sample number, logits [tokens, V], prompt state [H], pooled vision tokens [H]), in packed order."""
        import torch

        from students import taps
        from students.data.pack import collate, groups

        packed = groups(encoded, self.turns)
        packed.sort(key=lambda row: sum(len(encoded.prompts[k]) for k in row))  # rows of similar length: less padding
        weights = next(self.adapter.model.parameters())
        device = weights.device
        for start in range(0, len(packed), self.rows):
            batch = collate(encoded, packed[start : start + self.rows], self.pixels).to(device)
            with torch.inference_mode(), taps.thinking(device, weights.dtype):
                hidden, found = self.adapter.observe(batch, frozenset({"vision"}))
                spoken = self.adapter.head(self.adapter.supervised(hidden, batch))[:, : self.width].float().cpu().numpy()
                state = self.adapter.prompt_state(hidden, batch).float().cpu().numpy()
                pooled = found["vision"].float().mean(1).cpu().numpy()
            ends = np.cumsum(np.bincount(batch.sample.cpu().numpy(), minlength=len(batch.indices)))
            parts = np.split(spoken, ends[:-1])
            for number, (index, image) in enumerate(zip(batch.indices, batch.image.tolist(), strict=True)):
                yield index, parts[number], state[number], pooled[image] if image >= 0 else np.zeros_like(state[number])
