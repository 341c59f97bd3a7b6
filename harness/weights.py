"""What a checkpoint folder holds, read from its headers and file sizes alone: no tensor is loaded, no torch imported.

Layouts: https://github.com/huggingface/safetensors (8 bytes of length, a JSON header, the data) and the hub's sharded
``*.index.json``. A ``.bin`` file is a zip archive since torch 1.6; its parameters are only estimated, from its size.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base import UserError, read_json

_SAFETENSORS, _PICKLED = ".safetensors", ".bin"
#: Bytes per number of a ``.bin`` file whose configuration does not say: published weights are in half precision.
_HALF = 2
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: Headers are a few megabytes at most; a length beyond this is no header.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint.

    Attributes:
        size: of the files, in bytes.
        parameters: how many numbers they hold.
        exact: whether that was counted from headers; else it was estimated from the size.
        tower: parameters of the vision tower; 0 where names do not tell.
    """

    size: int
    parameters: int
    exact: bool
    tower: int


def read(folder: Path) -> Weights:
    """Return what the weights of a checkpoint folder are.

    Raises:
        UserError: naming the file that is missing, cut off or damaged: half a download is no checkpoint.
    """
    files = _files(folder)
    if files[0].suffix == _SAFETENSORS:
        headers = [_header(path) for path in files]
        counts = {name: math.prod(entry["shape"]) for header in headers for name, entry in header.items()}
        tower = sum(count for name, count in counts.items() if "vision" in name and "projector" not in name)
        return Weights(sum(path.stat().st_size for path in files), sum(counts.values()), True, tower)
    for path in files:
        if not zipfile.is_zipfile(path):  # the directory of a zip archive is at its end, so half a download has none
            raise UserError(f"{path} is cut off or damaged: it is no whole weight file. Delete it and fetch it again")
    size = sum(path.stat().st_size for path in files)
    facts = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return Weights(size, size // _BYTES.get(str(facts.get("torch_dtype", facts.get("dtype"))), _HALF), False, 0)


def _files(folder: Path) -> list[Path]:
    """Return the weight files, safetensors before pickled ones, each of an index checked to be there."""
    for suffix in (_SAFETENSORS, _PICKLED):
        indices = sorted(folder.glob(f"*{suffix}.index.json"))
        if indices:
            listed = sorted(set(read_json(indices[0])["weight_map"].values()))
            lost = [name for name in listed if not (folder / name).is_file()]
            if lost:
                raise UserError(
                    f"{folder / lost[0]} is missing, but {indices[0].name} lists it ({len(lost)} of {len(listed)} files are"
                    " missing): half a download; fetch the model again"
                )
            return [folder / name for name in listed]
        found = [path for path in sorted(folder.glob(f"*{suffix}")) if path.name != "training_args.bin"]
        if found:
            return found
    raise UserError(f"{folder} holds no weights (*.safetensors or *.bin): half a download? Fetch the model again")


def _header(path: Path) -> dict[str, Any]:
    """Return a safetensors file's header, by tensor; the file must be exactly as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise UserError(f"{path} is cut off or damaged: its header is not whole. Delete it and fetch it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as error:
            raise UserError(f"{path} is damaged: its header is not JSON. Delete it and fetch it again") from error
    header.pop("__metadata__", None)
    wanted = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != wanted:
        raise UserError(f"{path} is cut off or damaged: it has {size} bytes, its header needs {wanted}. Fetch it again")
    return header


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model that decide how much memory a training step takes."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int


def shape(folder: Path) -> Shape | None:
    """Return the language model's sizes from ``config.json``, or None where it does not say them.

    Raises:
        UserError: when the configuration is missing or damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: it is no Hugging Face folder")
    facts = read_json(path)
    text = facts.get("text_config", facts)
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    values = [text.get(name, facts.get(name)) for name in names]
    return Shape(*values) if all(isinstance(value, int) for value in values) else None
