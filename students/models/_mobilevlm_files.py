"""Weight files of MobileVLM V2: all there, safe to read, and of the published layout, before any model is built of them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base import UserError, nearest
from students.models._load import weights
from students.models._mobilevlm_config import tower_folder

Shape = tuple[int, ...]
TOWER = "model.vision_tower.vision_tower."
#: Buffers that old versions of transformers saved, and that are computed.
_COMPUTED = (".rotary_emb.inv_freq", ".position_ids")
_SHOWN = 3


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose weights were found to fit.

    Attributes:
        folder: where.
        tower: whether it has the vision tower's weights.
    """

    folder: Path
    tower: bool

    @classmethod
    def read(cls, folder: Path, expected: Mapping[str, Shape], tied: bool = False) -> Checkpoint:
        """Compare names and shapes of a folder's weights with those of the model, without reading the weights.

        Args:
            folder: with config.json.
            expected: the model's weights.
            tied: whether the head is the embedding, so that the file need not have it.

        Raises:
            UserError: naming the file or the weights that are missing, unknown or of another shape.
        """
        found: dict[str, Shape] = {}
        for file in weights(folder):
            found |= shapes(file)
        found = {name: shape for name, shape in found.items() if not name.endswith(_COMPUTED)}
        extra = sorted(found.keys() - expected.keys())
        if extra:
            close = nearest(extra[0], expected, 1)
            hint = f" (nearest: {close[0]})" if close else ""
            raise UserError(
                f"{folder} has {len(extra)} weight(s) that MobileVLM V2 has not, the first is {extra[0]}{hint}; expected is the"
                " published layout: model.layers..., model.mm_projector..., model.vision_tower.vision_tower..., lm_head"
            )
        absent = {name for name in expected.keys() - found.keys() if not (tied and name == "lm_head.weight")}
        tower = {name for name in expected if name.startswith(TOWER)}
        whole = not tower <= absent
        lacking = sorted(absent if whole else absent - tower)
        if lacking:
            raise UserError(
                f"{folder} lacks {len(lacking)} of {len(expected)} weights: {', '.join(lacking[:_SHOWN])}"
                f"{' ...' if len(lacking) > _SHOWN else ''}; download it again"
            )
        wrong = sorted(name for name in found if found[name] != expected[name])
        if wrong:
            raise UserError(
                f"{folder}: {wrong[0]} has shape {list(found[wrong[0]])}, and config.json says {list(expected[wrong[0]])}"
                f" ({len(wrong)} such weight(s)); config.json and weights are of different models"
            )
        return cls(folder, whole)

    def tower_weights(self, tower: str) -> dict[str, Tensor]:
        """Read the weights of the tower that config.json names, for a checkpoint that has none.

        Returns:
            Weights by names that start with ``vision_model.``.

        Raises:
            UserError: when the tower is not on this machine, or its folder has no weights of a CLIP.
        """
        return tower_weights(tower_folder(tower, self.folder))


def tower_weights(place: Path) -> dict[str, Tensor]:
    """Read the vision weights of a CLIP folder, by names that start with ``vision_model.``.

    Raises:
        UserError: naming the folder, when it has none.
    """
    found: dict[str, Tensor] = {}
    for file in weights(place):
        found |= {name: value for name, value in read(file).items() if name.startswith("vision_model.")}
    found = {name: value for name, value in found.items() if not name.endswith(_COMPUTED)}
    if not found:
        raise UserError(f"{place} has no weights of a CLIP vision tower (vision_model...)")
    return found


def shapes(file: Path) -> dict[str, Shape]:
    """Return the shapes of a file's weights by name; see :func:`read` for the errors."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return {name: tuple(value.shape) for name, value in read(file, device="meta").items()}


def read(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a weight file; what a pickle would run is never run.

    Raises:
        UserError: naming the file that is truncated or damaged, that has code in it, or that holds something else.
    """
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(file, device))
    try:
        found = _unpickled(file, device)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} is a pickle with code in it, which is never run ({_line(error)}); get the weights as safetensors, or"
            " convert them on a machine that may run that code"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} is truncated or damaged ({_line(error)}); download it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} holds no weights by name (a dictionary of tensors); it is no checkpoint of transformers")
    return found


def _unpickled(file: Path, device: str) -> Any:
    import zipfile

    # only the zip format of torch 1.6 and later can be mapped instead of read
    return torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file))


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    known = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (known or lines or [type(error).__name__])[0]
