"""What the teacher says about the supervised tokens: computed once, memory-mapped by every student."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, digest, digest_file, read_json, write_json
from students.blind import Blind, others

if TYPE_CHECKING:
    import torch

    from students.data.pack import Encoded
    from students.data.samples import TrainingSet
    from students.models._base import Adapter

VERSION = 2
ARRAYS = ("logits", "labels", "offsets", "entropy", "correct", "prompt", "vision", "seen")
_REMAKE = "Remove the folder and run the same command again"
_T = TypeVar("_T")


def data_digest(data: TrainingSet) -> str:
    """SHA-256 (hex) over every field of every sample, in order, and the pixels of the images they show."""
    hashed = hashlib.sha256()
    for key in sorted({s.image for s in data if s.image is not None}):
        pixels = np.ascontiguousarray(data.images[key])
        hashed.update(f"{key}|{pixels.shape}|".encode())
        hashed.update(pixels.tobytes())
    samples = [[s.id, s.image, s.prompt, s.answer, s.clean_answer, bool(s.noisy), bool(s.blind)] for s in data]
    return digest([samples, hashed.hexdigest()])


def signal_key(teacher: Path, data: TrainingSet, blind: Blind | None = None) -> dict[str, str]:
    """What a cached signal depends on: teacher weights, data, template and tokenizer, preprocessing, blind answers, dtype."""

    def files(*names: str) -> str:
        return digest([[name, digest_file(teacher / name)] for name in names if (teacher / name).is_file()])

    from students.models._load import weights as files_of

    weights = sorted(path.name for path in files_of(teacher))
    return {
        "teacher": files("config.json", *weights),
        "data": data_digest(data),
        "template": files(
            "chat_template.jinja", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"
        ),
        "preprocessing": files("preprocessor_config.json", "processor_config.json"),
        "blind_teacher": str(blind or Blind()),
        "dtype": "float32",
    }


def pixel_table(adapter: Adapter, data: TrainingSet) -> dict[str, torch.Tensor]:
    """Preprocess every image that a sample shows, once: {key: float32 [3, H, W]}."""
    keys = sorted({s.image for s in data if s.image is not None})
    table: dict[str, torch.Tensor] = {}
    for start in range(0, len(keys), 256):
        part = keys[start : start + 256]
        table.update(zip(part, adapter.pixels([data.images[key] for key in part]), strict=True))
    return table


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
) -> None:
    """Run the teacher once over all samples and write what students are told into ``out``.

    Blind samples are answered as ``blind`` says; of a mixture, prompt and vision are the means over its images. ``correct``
    compares the greedy reply with the clean answer; where the label is noisy that takes a second pass, because the noisy
    label would be its context.

    Args:
        teacher: checkpoint folder.
        data: the samples, in the order that students number them.
        out: folder for logits.npy float32 [T, V] (V: the real vocabulary, without a padded head's other rows; of a mixture,
            log-probabilities), labels.npy int64 [T], offsets.npy int64 [S + 1], entropy.npy float32 [S] (nats, mean over a
            sample's tokens), correct.npy bool [S], prompt.npy float32 [S, H] (state at the last prompt position), vision.npy
            float32 [S, H] (mean over the projected vision tokens of the image shown to the teacher), seen.npy bool [S]
            (whether there is one; vision is 0 and means nothing elsewhere), ids.json, vocabulary.json (V tokens), meta.json.
        progress: called with finished and total passes over a sample.
        rows: packed rows per forward pass.
        turns: most questions in one row.
        device: "cpu" or "cuda".
        blind: what blind samples are told; None for the mean image.

    Raises:
        UserError: for a checkpoint that cannot be read, or too few images to shuffle.
        FloatingPointError: naming samples, when the teacher says something that is not a number.
    """
    from students import models, vocabulary
    from students.data.pack import encode

    blind = blind or Blind()
    adapter = models.load(teacher, device)
    tokens = vocabulary.tokens(adapter.processor.tokenizer)
    encoded = encode(data.samples, adapter.processor)
    views, table = _views(data, encoded, pixel_table(adapter, data), blind)
    noisy = [k for k, (a, c) in enumerate(zip(encoded.answers, encoded.clean, strict=True)) if not np.array_equal(a, c)]
    total = sum(len(view) for view in views) + sum(len(views[k]) for k in noisy)
    done = itertools.count(1)

    def tick() -> None:
        if (now := next(done)) % 512 == 0 or now == total:
            progress(now, total)

    ask = _Ask(adapter, table, len(tokens), rows, turns, tick)
    out.mkdir(parents=True, exist_ok=True)
    offsets = _offsets(encoded.answers)
    spoken, states, vision = ask(encoded, views, out / "logits.npy")
    entropy = np.array([_entropy(spoken[a:b]) for a, b in itertools.pairwise(offsets)], np.float32)
    correct = _greedy(spoken, encoded.clean, offsets, range(len(data)))
    if noisy:
        part = _chosen(replace(encoded, answers=encoded.clean), [(k, encoded.images[k]) for k in noisy])
        again, _, _ = ask(part, [views[k] for k in noisy], out / "clean.npy")
        correct[noisy] = _greedy(again, part.answers, _offsets(part.answers), range(len(noisy)))
        del again
        (out / "clean.npy").unlink()
    bad = [data.samples[k].id for k in np.flatnonzero(~np.isfinite(entropy))]
    if bad:
        raise FloatingPointError(f"the teacher {teacher} is not finite on {len(bad)} sample(s): {', '.join(bad[:5])}")
    spoken.flush()
    arrays: dict[str, NDArray[Any]] = {
        "labels": np.concatenate(encoded.answers),
        "offsets": offsets,
        "entropy": entropy,
        "correct": correct,
    }
    arrays |= {"prompt": states, "vision": vision, "seen": np.array([s.image is not None for s in data])}
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", array)
    shapes = {name: list(np.load(out / f"{name}.npy", mmap_mode="r").shape) for name in ARRAYS}
    write_json(out / "ids.json", [s.id for s in data])
    write_json(out / "vocabulary.json", list(tokens))
    write_json(out / "meta.json", {"version": VERSION, "key": signal_key(teacher, data, blind), "shapes": shapes})


def _views(
    data: TrainingSet, encoded: Encoded, table: dict[str, torch.Tensor], blind: Blind
) -> tuple[list[tuple[str | None, ...]], dict[str, torch.Tensor]]:
    """Return per sample the images that the teacher is shown one after the other, and the table with their pixels."""
    from students.taps import shown

    if blind.says == "mean_image":
        encoded, table = shown(data, encoded, table)
        return [(image,) for image in encoded.images], table
    drawn = others(data, blind.seed)
    return [drawn[s.benchmark, s.image] if s.blind and s.image is not None else (s.image,) for s in data], table


def _offsets(answers: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(answer) for answer in answers])]).astype(np.int64)


def _greedy(
    spoken: NDArray[np.float32], answers: Sequence[NDArray[np.int64]], offsets: NDArray[np.int64], indices: Iterable[int]
) -> NDArray[np.bool_]:
    """Whether the most probable tokens of each sample are its answer."""
    return np.array([np.array_equal(spoken[offsets[k] : offsets[k + 1]].argmax(-1), answers[k]) for k in indices], np.bool_)


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
        self, encoded: Encoded, views: Sequence[tuple[str | None, ...]], path: Path
    ) -> tuple[np.memmap[Any, np.dtype[np.float32]], NDArray[np.float32], NDArray[np.float32]]:
        """Ask about every sample once per view (image to show), and mix the answers.

        Returns:
            A memory map at ``path`` [T, V] with logits where there is one view, log mean probabilities where there are
            more; prompt states [S, H] and pooled vision tokens [S, H], means over the views.
        """
        offsets = _offsets(encoded.answers)
        said = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(int(offsets[-1]), self.width))
        state = np.zeros((len(encoded), self.adapter.hidden_size), np.float32)
        vision = np.zeros_like(state)
        asked = [(k, image) for k, view in enumerate(views) for image in view]
        for k, view in enumerate(views):
            if len(view) > 1:
                said[offsets[k] : offsets[k + 1]] = -np.inf
        for number, logits, prompt, pooled in self._speak(_chosen(encoded, asked)):
            k = asked[number][0]
            part, count = slice(offsets[k], offsets[k + 1]), len(views[k])
            said[part] = logits if count == 1 else np.logaddexp(said[part], _log_softmax(logits) - np.log(count))
            state[k] += prompt / count
            vision[k] += pooled / count
            self.tick()
        return said, state, vision

    def _speak(self, encoded: Encoded) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
        """Yield (sample number, logits [tokens, V], prompt state [H], pooled vision tokens [H]), in packed order."""
        import torch

        from students.data.pack import collate, groups

        packed = groups(encoded, self.turns)
        packed.sort(key=lambda row: sum(len(encoded.prompts[k]) for k in row))  # rows of similar length: less padding
        device = next(self.adapter.model.parameters()).device
        for start in range(0, len(packed), self.rows):
            batch = collate(encoded, packed[start : start + self.rows], self.pixels).to(device)
            with torch.inference_mode():
                hidden, taps = self.adapter.observe(batch, frozenset({"vision"}))
                spoken = self.adapter.head(self.adapter.supervised(hidden, batch))[:, : self.width].float().cpu().numpy()
                state = self.adapter.prompt_state(hidden, batch).float().cpu().numpy()
                pooled = taps["vision"].float().mean(1).cpu().numpy()
            ends = np.cumsum(np.bincount(batch.sample.cpu().numpy(), minlength=len(batch.indices)))
            parts = np.split(spoken, ends[:-1])
            for number, (index, image) in enumerate(zip(batch.indices, batch.image.tolist(), strict=True)):
                yield index, parts[number], state[number], pooled[image] if image >= 0 else np.zeros_like(state[number])


@dataclass(frozen=True)
class TeacherSignal:
    """A cached signal, memory-mapped; see :func:`cache` for the arrays.

    Attributes:
        ids: the samples, in order.
        vocabulary: the V tokens that logits are for, in order.
        blind_teacher: what blind samples were told, as :class:`Blind` prints it.
    """

    logits_array: NDArray[np.float32]
    labels_array: NDArray[np.int64]
    offsets: NDArray[np.int64]
    entropy: NDArray[np.float32]
    correct: NDArray[np.bool_]
    prompt: NDArray[np.float32]
    vision_array: NDArray[np.float32]
    seen: NDArray[np.bool_]
    ids: tuple[str, ...]
    vocabulary: tuple[str, ...]
    blind_teacher: str

    @classmethod
    def load(cls, folder: Path, expected_key: Mapping[str, str]) -> TeacherSignal:
        """Open a cached signal.

        Raises:
            UserError: naming the file that is missing or truncated, or what the signal was made from that has changed.
        """
        if not (folder / "meta.json").is_file():
            raise UserError(f"{folder} holds no teacher signal: meta.json is missing. {_REMAKE}")
        meta = read_json(folder / "meta.json")
        if meta.get("version") != VERSION:
            raise UserError(
                f"{folder / 'meta.json'} has version {meta.get('version')!r}, this program reads {VERSION}. {_REMAKE}"
            )
        stale = [part for part in expected_key if meta["key"].get(part) != expected_key[part]]
        if stale:
            raise UserError(
                f"the teacher signal in {folder} is stale: it was made from another {' and '.join(stale)}. {_REMAKE}"
            )
        arrays: dict[str, Any] = {}
        for name in ARRAYS:
            path = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(path, mmap_mode="r")
            except (ValueError, OSError, EOFError) as error:
                raise UserError(f"{path} is missing or truncated ({error}). {_REMAKE}") from error
            if list(arrays[name].shape) != meta["shapes"][name]:
                raise UserError(f"{path} has shape {arrays[name].shape}, meta.json says {meta['shapes'][name]}. {_REMAKE}")
        names: dict[str, Any] = {}
        for name, size in (("ids", len(arrays["entropy"])), ("vocabulary", arrays["logits"].shape[1])):
            path = folder / f"{name}.json"
            found = read_json(path) if path.is_file() else None
            if not isinstance(found, list) or len(found) != size:
                raise UserError(f"{path} is missing or does not fit the arrays. {_REMAKE}")
            names[name] = tuple(found)
        for name in ("logits", "labels", "vision"):
            arrays[f"{name}_array"] = arrays.pop(name)
        return cls(**arrays, **names, blind_teacher=meta["key"]["blind_teacher"])

    @property
    def vocabulary_size(self) -> int:
        """V, the number of logits per token."""
        return int(self.logits_array.shape[1])

    def _tokens(self, indices: Sequence[int]) -> NDArray[np.int64]:
        return np.concatenate([np.arange(self.offsets[k], self.offsets[k + 1]) for k in indices])

    def logits(self, indices: Sequence[int]) -> torch.Tensor:
        """Teacher logits float32 [N, V] of the samples' supervised tokens, sample by sample, as a Batch orders them."""
        import torch

        return torch.from_numpy(self.logits_array[self._tokens(indices)])

    def labels(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return the labels int64 [N] that the logits were computed for, in the same order."""
        return np.asarray(self.labels_array[self._tokens(indices)])

    def prompt_state(self, indices: Sequence[int]) -> torch.Tensor:
        """Teacher states float32 [B, H] at the samples' last prompt positions."""
        import torch

        return torch.from_numpy(self.prompt[list(indices)])

    def vision(self, indices: Sequence[int]) -> torch.Tensor:
        """Mean projected vision tokens float32 [B, H] of what the teacher saw; 0 and meaningless where ``seen`` is False."""
        import torch

        return torch.from_numpy(self.vision_array[list(indices)])
