"""A signal of packed samples on disk, opened: what each student looks its samples up in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError, read_json
from students.data.mapped import REMAKE
from students.teacher_signal.forms import Form
from students.teacher_signal.keys import refuse_stale
from students.teacher_signal.packed import FACTS, VERSION

if TYPE_CHECKING:
    import torch

    from students.stored import Spoken

#: The version before forms: always exact, float32.
_EXACT_ONLY = 2


@dataclass(frozen=True)
class TeacherSignal:
    """A cached signal, memory-mapped; see :func:`students.teacher_signal.packed.cache` for the arrays.

    Attributes:
        logits_array: of the distributions, as the form keeps them.
        ids: the samples, in order.
        vocabulary: the V tokens that logits are for, in order.
        blind_teacher: what blind samples were told, as :class:`students.blind.Blind` prints it.
        form: how distributions are kept.
        more: the form's other arrays.
        errors: what the form changes, as measured; None for the exact one.
    """

    logits_array: NDArray[Any]
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
    form: Form = field(default_factory=Form)
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    errors: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, folder: Path, expected_key: Mapping[str, str]) -> TeacherSignal:
        """Open a cached signal.

        Raises:
            UserError: naming the file that is missing or truncated, or what the signal was made from that has changed.
        """
        from students.teacher_signal import codec

        meta = read_meta(folder, (_EXACT_ONLY, VERSION))
        refuse_stale("the teacher signal", folder, meta["key"], expected_key)
        form = Form(**meta["form"]) if "form" in meta else Form()
        said = [name for name in meta["shapes"] if name not in FACTS]
        arrays = {name: mapped(folder, name, meta["shapes"]) for name in (*said, *FACTS)}
        names: dict[str, Any] = {}
        width = None if form.k is not None else arrays["logits"].shape[1]
        for name, size in (("ids", len(arrays["entropy"])), ("vocabulary", width)):
            names[name] = read_names(folder / f"{name}.json", size)
        for name, (dtype, shape) in codec.columns(form, len(names["vocabulary"])).items():
            found = arrays[name]
            if found.dtype != np.dtype(dtype) or found.shape[1:] != shape or len(found) != len(arrays["labels"]):
                raise UserError(f"{folder / name}.npy is no array of the form {form}. {REMAKE}")
        return cls(
            logits_array=arrays["logits"],
            labels_array=arrays["labels"],
            vision_array=arrays["vision"],
            offsets=arrays["offsets"],
            entropy=arrays["entropy"],
            correct=arrays["correct"],
            prompt=arrays["prompt"],
            seen=arrays["seen"],
            ids=names["ids"],
            vocabulary=names["vocabulary"],
            blind_teacher=meta["key"]["blind_teacher"],
            form=form,
            more={name: arrays[name] for name in said if name != "logits"},
            errors=meta.get("errors"),
        )

    @property
    def vocabulary_size(self) -> int:
        """V, the number of tokens that distributions are over."""
        return len(self.vocabulary) if self.form.k is not None else int(self.logits_array.shape[1])

    def _tokens(self, indices: Sequence[int]) -> NDArray[np.int64]:
        return np.concatenate([np.arange(self.offsets[k], self.offsets[k + 1]) for k in indices])

    def logits(self, indices: Sequence[int]) -> Spoken:
        """Return what the teacher says about the samples' supervised tokens, sample by sample, as a Batch orders them.

        Logits float32 [N, V], in parts where they are many, or bins over its likeliest tokens.
        """
        from students.teacher_signal import codec

        arrays = {"logits": self.logits_array, **self.more}
        return codec.at(self.form, arrays, self._tokens(indices), self.vocabulary_size)

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


def read_meta(folder: Path, versions: Sequence[int]) -> dict[str, Any]:
    """Read ``meta.json``, which is written last: without it there is no signal.

    Raises:
        UserError: where it is missing, damaged or of another version.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no teacher signal: meta.json is missing. {REMAKE}")
    meta: dict[str, Any] = read_json(path)
    if meta.get("version") not in versions:
        raise UserError(f"{path} has version {meta.get('version')!r}, this program reads {max(versions)}. {REMAKE}")
    return meta


def mapped(folder: Path, name: str, shapes: Mapping[str, Sequence[int]]) -> NDArray[Any]:
    """Map one of the arrays that ``meta.json`` names into memory.

    Raises:
        UserError: naming the file that is missing, truncated or of another shape.
    """
    path = folder / f"{name}.npy"
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is missing or truncated ({error}). {REMAKE}") from error
    if list(found.shape) != list(shapes[name]):
        raise UserError(f"{path} has shape {found.shape}, meta.json says {shapes[name]}. {REMAKE}")
    return found


def read_names(path: Path, size: int | None) -> tuple[str, ...]:
    """Read a list of names.

    Raises:
        UserError: where it is missing, or not of ``size`` names (None: any).
    """
    found = read_json(path) if path.is_file() else None
    if not isinstance(found, list) or (size is not None and len(found) != size):
        raise UserError(f"{path} is missing or does not fit the arrays. {REMAKE}")
    return tuple(found)
