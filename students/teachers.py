"""What the teacher says about the supervised tokens: computed once, memory-mapped by every student."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, digest, digest_file, read_json, write_json

if TYPE_CHECKING:
    import torch

    from students.data.pack import Encoded
    from students.data.samples import TrainingSet
    from students.models.llava import LlavaAdapter

VERSION = 1
ARRAYS = ("logits", "labels", "offsets", "entropy", "correct", "prompt")
_BLANK = "(mean image)"  # a key that no image can have: the others are hexadecimal
_REMAKE = "Remove the folder and run the same command again"


def data_digest(data: TrainingSet) -> str:
    """SHA-256 (hex) over every field of every sample, in order, and the pixels of the images they show."""
    hashed = hashlib.sha256()
    for key in sorted({s.image for s in data if s.image is not None}):
        pixels = np.ascontiguousarray(data.images[key])
        hashed.update(f"{key}|{pixels.shape}|".encode())
        hashed.update(pixels.tobytes())
    samples = [[s.id, s.image, s.prompt, s.answer, s.clean_answer, bool(s.noisy), bool(s.blind)] for s in data]
    return digest([samples, hashed.hexdigest()])


def signal_key(teacher: Path, data: TrainingSet) -> dict[str, str]:
    """What a cached signal depends on: teacher weights, data, chat template and tokenizer, image preprocessing, dtype."""

    def files(*names: str) -> str:
        return digest([[name, digest_file(teacher / name)] for name in names if (teacher / name).is_file()])

    weights = sorted(path.name for path in teacher.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{teacher} is no checkpoint: it has no safetensors file")
    return {
        "teacher": files("config.json", *weights),
        "data": data_digest(data),
        "template": files("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        "preprocessing": files("preprocessor_config.json", "processor_config.json"),
        "dtype": "float32",
    }


def pixel_table(adapter: LlavaAdapter, data: TrainingSet) -> dict[str, torch.Tensor]:
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
) -> None:
    """Run the teacher once over all samples and write its signal into ``out``.

    Blind samples are shown the mean of the training images. ``correct`` compares the teacher's greedy reply with the clean
    answer; where the label is noisy that takes a second pass, because the noisy label would be its context.

    Args:
        teacher: checkpoint folder.
        data: the samples, in the order that students number them.
        out: folder for logits.npy float32 [T, V], labels.npy int64 [T], offsets.npy int64 [S + 1], entropy.npy float32 [S]
            (nats, mean over a sample's tokens), correct.npy bool [S], prompt.npy float32 [S, H] (state at the last prompt
            position), ids.json, meta.json.
        progress: called with finished and total samples.
        rows: packed rows per forward pass.
        turns: most questions in one row.
        device: "cpu" or "cuda".

    Raises:
        UserError: for a checkpoint that cannot be read.
        FloatingPointError: naming samples, when the teacher says something that is not a number.
    """
    from students import models
    from students.data.pack import encode

    adapter = models.load(teacher, device)
    encoded = encode(data.samples, adapter.processor)
    table: dict[str, torch.Tensor] = pixel_table(adapter, data)
    if any(s.blind and s.image is not None for s in data):
        table[_BLANK] = sum(table.values()) / len(table)  # type: ignore[assignment]
        shown = [_BLANK if s.blind and s.image is not None else s.image for s in data]
        encoded = replace(encoded, images=tuple(shown))
    key = signal_key(teacher, data)
    noisy = [k for k, (a, c) in enumerate(zip(encoded.answers, encoded.clean, strict=True)) if not np.array_equal(a, c)]
    total = len(data) + len(noisy)

    out.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum([len(answer) for answer in encoded.answers])]).astype(np.int64)
    logits = np.lib.format.open_memmap(
        out / "logits.npy", mode="w+", dtype=np.float32, shape=(int(offsets[-1]), adapter.vocabulary_size)
    )
    entropy, correct = np.zeros(len(data), np.float32), np.zeros(len(data), np.bool_)
    prompt = np.zeros((len(data), adapter.hidden_size), np.float32)
    done = 0
    for index, spoken, state in _speak(adapter, encoded, range(len(data)), table, rows, turns):
        logits[offsets[index] : offsets[index + 1]] = spoken
        entropy[index] = _entropy(spoken)
        prompt[index] = state
        correct[index] = np.array_equal(spoken.argmax(-1), encoded.clean[index])
        done = _tick(progress, done, total)
    for index, spoken, _ in _speak(adapter, replace(encoded, answers=encoded.clean), noisy, table, rows, turns):
        correct[index] = np.array_equal(spoken.argmax(-1), encoded.clean[index])
        done = _tick(progress, done, total)
    bad = [data.samples[k].id for k in np.flatnonzero(~np.isfinite(entropy))]
    if bad:
        raise FloatingPointError(f"the teacher {teacher} is not finite on {len(bad)} sample(s): {', '.join(bad[:5])}")
    logits.flush()
    labels = np.concatenate(encoded.answers)
    for name, array in (
        ("labels", labels),
        ("offsets", offsets),
        ("entropy", entropy),
        ("correct", correct),
        ("prompt", prompt),
    ):
        np.save(out / f"{name}.npy", array)
    shapes = {name: list(np.load(out / f"{name}.npy", mmap_mode="r").shape) for name in ARRAYS}
    write_json(out / "ids.json", [s.id for s in data])
    write_json(out / "meta.json", {"version": VERSION, "key": key, "shapes": shapes})


def _tick(progress: Callable[[int, int], None], done: int, total: int) -> int:
    done += 1
    if done % 512 == 0 or done == total:
        progress(done, total)
    return done


def _entropy(logits: NDArray[np.float32]) -> float:
    """Mean entropy in nats of [tokens, V] logits; a banned (-inf) token adds nothing."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    p = np.exp(log_p)
    return float(-(p * np.where(np.isneginf(log_p), 0.0, log_p)).sum(-1).mean())


def _speak(
    adapter: LlavaAdapter,
    encoded: Encoded,
    indices: Sequence[int],
    pixels: Mapping[str, torch.Tensor],
    rows: int,
    turns: int,
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield (sample number, logits [tokens, V], prompt state [H]) of the given samples, in the order of the packed rows."""
    import torch

    from students.data.pack import collate, groups

    wanted = set(indices)
    packed = [kept for row in groups(encoded, turns) if (kept := [k for k in row if k in wanted])]
    packed.sort(key=lambda row: sum(len(encoded.prompts[k]) for k in row))  # rows of similar length: less padding
    device = next(adapter.model.parameters()).device
    for start in range(0, len(packed), rows):
        batch = collate(encoded, packed[start : start + rows], pixels).to(device)
        with torch.inference_mode():
            hidden = adapter.hidden(batch)
            spoken = adapter.head(adapter.supervised(hidden, batch)).float().cpu().numpy()
            state = adapter.prompt_state(hidden, batch).float().cpu().numpy()
        ends = np.cumsum(np.bincount(batch.sample.cpu().numpy(), minlength=len(batch.indices)))
        for number, (index, part) in enumerate(zip(batch.indices, np.split(spoken, ends[:-1]), strict=True)):
            yield index, part, state[number]


@dataclass(frozen=True)
class TeacherSignal:
    """A cached signal, memory-mapped; see :func:`cache` for the arrays. ``ids`` names the samples in order."""

    logits_array: NDArray[np.float32]
    labels_array: NDArray[np.int64]
    offsets: NDArray[np.int64]
    entropy: NDArray[np.float32]
    correct: NDArray[np.bool_]
    prompt: NDArray[np.float32]
    ids: tuple[str, ...]

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
        ids = read_json(folder / "ids.json") if (folder / "ids.json").is_file() else None
        if not isinstance(ids, list) or len(ids) != len(arrays["entropy"]):
            raise UserError(f"{folder / 'ids.json'} is missing or does not fit the arrays. {_REMAKE}")
        logits, labels = arrays.pop("logits"), arrays.pop("labels")
        return cls(logits_array=logits, labels_array=labels, ids=tuple(ids), **arrays)

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
