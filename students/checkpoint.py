"""Digests of weights, and the weighting's state beside (never inside) the student's checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UserError, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from students.losses import Losses
    from students.weightings._base import Weighting

DAMAGED = "is damaged or truncated. Remove it and run the same command again"


def digest_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, whatever the order."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{flat.dtype}|{tuple(flat.shape)}|".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Read a safetensors file tensor by tensor.

    Raises:
        UserError: naming the file when it is missing, damaged or truncated.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} {DAMAGED} ({error})") from error


def digest_weights(folder: Path) -> str:
    """SHA-256 (hex) over the weights of a checkpoint folder, independent of file metadata and sharding.

    Raises:
        UserError: when the folder has no safetensors, or a damaged one.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} is no checkpoint: it has no safetensors file")
    return digest_tensors(item for file in files for item in tensors(file))


def save_weighting(weighting: Weighting, name: str, facts: Mapping[str, Any], out: Path) -> None:
    """Write ``weighting.safetensors`` (float32 state) and ``weighting.json`` (name, channels and ``facts``) into ``out``."""
    from safetensors.torch import save_file

    save_file({k: v.detach().cpu().contiguous() for k, v in weighting.state_dict().items()}, out / "weighting.safetensors")
    write_json(out / "weighting.json", {"name": name, "channels": list(weighting.channels), **facts})


def save_energies(losses: Losses, out: Path) -> None:
    """Write ``energies.safetensors`` into ``out``: parameters and state of the energies, by channel, where they have any."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in losses.energies.state_dict().items()}
    if state:
        save_file(state, out / "energies.safetensors")


def load_weighting(folder: Path) -> Weighting:
    """Rebuild the weighting that :func:`save_weighting` wrote into ``folder``, in evaluation mode.

    Raises:
        UserError: naming the file that is missing, damaged or does not fit the other.
    """
    from students import weightings

    if not (folder / "weighting.json").is_file():
        raise UserError(f"{folder / 'weighting.json'} is missing")
    facts = read_json(folder / "weighting.json")
    weighting = weightings.build(facts["name"], facts["channels"], facts["feature_dim"], **facts["options"])
    try:
        weighting.load_state_dict(dict(tensors(folder / "weighting.safetensors")))
    except RuntimeError as error:
        raise UserError(f"{folder / 'weighting.safetensors'} does not fit weighting.json: {error}") from error
    return weighting.eval()
