"""Which tower it was, under which preprocessing and arithmetic: what features may be shared by, and why they may not be."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.base import UserError, digest

if TYPE_CHECKING:
    from students.models._base import Adapter

#: Sides (height, width) of the pictures that preprocessing is compared on: square, wide, tall, small and odd.
_PROBES = ((60, 60), (48, 64), (91, 33), (17, 17), (336, 336), (250, 401))
#: What a configuration says beside the computation.
_BESIDE = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "initializer_range", "initializer_factor",
    "projection_dim", "model_type", "return_dict", "output_hidden_states", "output_attentions",
}  # fmt: skip

#: The parts of a key, in the order in which a difference is told.
PARTS = ("weights", "settings", "preprocessing", "arithmetic")
_SAID = {
    "weights": "the tower's weights are others",
    "settings": "the tower is read otherwise (layer, tokens or sizes)",
    "preprocessing": "images are preprocessed otherwise",
    "arithmetic": "the tower computes in another precision",
}


def unsplit(adapter: Adapter) -> str | None:
    """Return why the tower of a model cannot be computed once, in one line, or None where it can.

    A tower that drops some of its attention at random sees an image differently every time, which is augmentation.
    """
    if not adapter.splits:
        return f"a {adapter.family} cuts images into variable numbers of tokens, so its tower is not run apart"
    if any(parameter.requires_grad for parameter in adapter.tower.parameters()):
        return "the tower learns"
    if any(value for name, value in adapter.tower_settings().items() if name.endswith("dropout")):
        return "the tower has dropout, so it sees an image differently every time"
    return None


def key(adapter: Adapter, half: bool) -> dict[str, str]:
    """Return what features depend on: the tower's weights and settings, preprocessing, arithmetic; SHA-256 (hex) or words.

    Args:
        adapter: the model as it will run, its tower's weights in the type that they compute in.
        half: whether it runs under autocast to bfloat16.

    Raises:
        UserError: for a model whose tower cannot be computed once (:func:`unsplit`), or that preprocesses at random.
    """
    from students.checkpoint import digest_tensors

    why = unsplit(adapter)
    if why is not None:
        raise UserError(f"features cannot be stored: {why}")
    settings = {name: value for name, value in adapter.tower_settings().items() if name not in _BESIDE}
    return {
        "weights": digest_tensors(adapter.tower.state_dict().items()),
        "settings": digest(settings),
        "preprocessing": preprocessing(adapter),
        "arithmetic": "bfloat16 autocast" if half else "its own",
    }


def preprocessing(adapter: Adapter) -> str:
    """Return the SHA-256 (hex) of what preprocessing makes of a few fixed pictures of noise.

    Raises:
        UserError: when it makes something else of them the second time: images are augmented.
    """
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in _PROBES]

    def once() -> str:
        return digest([fingerprint(adapter.pixels([picture])[0]).hex() for picture in pictures])

    found = once()
    if found != once():
        raise UserError("features cannot be stored: images are augmented, so they are never the same twice")
    return found


def fingerprint(pixels: Any) -> bytes:
    """Return the SHA-256 of one preprocessed image, a tensor [3, H, W] on the CPU: its type, shape and bytes."""
    flat = pixels.contiguous()
    hashed = hashlib.sha256(f"{flat.dtype}|{tuple(flat.shape)}|".encode())
    hashed.update(flat.numpy())
    return hashed.digest()


def difference(wanted: dict[str, str], found: dict[str, str]) -> str | None:
    """Say why features of one key are not those of another, in one line; None where they are."""
    apart = [_SAID[part] for part in PARTS if wanted.get(part) != found.get(part)]
    return " and ".join(apart) or None
