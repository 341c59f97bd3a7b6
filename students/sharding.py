"""Tensors that are sharded over ranks (DTensors), made whole, and whole ones laid out again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded over ranks (a DTensor); every rank must ask at once."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else torch.as_tensor(full())


def whole_tree(tree: Any) -> Any:
    """Return a copy of nested dicts, lists and tuples whose sharded tensors are whole."""
    if isinstance(tree, Tensor):
        return whole(tree)
    if isinstance(tree, dict):
        return {key: whole_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole_tree(value) for value in tree)
    return tree


def like(value: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor laid out over ranks as ``model`` is."""
    mesh = getattr(model, "device_mesh", None)
    if mesh is None:
        return value
    from torch.distributed.tensor import distribute_tensor

    placed: Tensor = distribute_tensor(value.to(model.device), mesh, model.placements)  # type: ignore[attr-defined]
    return placed


def lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Lay an optimiser's state out over ranks as its parameters are."""
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = like(value, parameter)
