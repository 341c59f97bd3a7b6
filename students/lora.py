"""LoRA students through peft: matrices beside linear layers, merged into them when the student is saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.base import UserError
from students.options import Lora

if TYPE_CHECKING:
    from students.models._base import Adapter

_NAME = "default"
#: What peft puts into the name of a layer that has matrices beside it.
INSIDE = ".base_layer"


def targets(adapter: Adapter, words: tuple[str, ...] | None) -> list[str]:
    """Return the full names of the layers that get matrices.

    Args:
        adapter: the model.
        words: last words of names, or None for all that can have them.

    Raises:
        UserError: naming a word that no layer has, and those that there are.
    """
    known = adapter.lora_targets
    last = [name.rpartition(".")[2] for name in known]
    for word in words or ():
        if word not in last:
            there = ", ".join(dict.fromkeys(last)) or "none"
            raise UserError(f"lora names the target {word!r}; linear layers of this {adapter.family}: {there}")
    chosen = [name for name, word in zip(known, last, strict=True) if words is None or word in words]
    if not chosen:
        raise UserError(f"lora finds no linear layer in the language model of this {adapter.family}")
    return chosen


def attach(adapter: Adapter, options: Lora, seed: int) -> None:
    """Put matrices beside the target layers, in float32, and freeze the language model's own parameters.

    Raises:
        UserError: for a target that the model does not have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    kept = [p for p in adapter.model.parameters() if p.requires_grad]
    language = {id(p) for p in adapter.language.parameters()} | {id(p) for p in adapter.model.lm_head.parameters()}
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout,
        target_modules=targets(adapter, options.targets), bias="none",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, adapter.model, adapter_name=_NAME)
    for parameter in kept:  # peft freezes everything but its own
        parameter.requires_grad_(id(parameter) not in language)
    for name, parameter in adapter.model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def save(adapter: Adapter, folder: Path) -> None:
    """Write the matrices as a peft adapter of the base: ``adapter_model.safetensors`` and ``adapter_config.json``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor.detach().cpu().contiguous()
        for name, tensor in adapter.model.named_parameters()
        if "lora_" in name
    }
    save_file(state, folder / "adapter_model.safetensors")
    adapter.model.peft_config[_NAME].save_pretrained(folder)


def merge(adapter: Adapter) -> None:
    """Add the matrices' product to their layers, and take them away: the model is plain again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [(name, module) for name, module in adapter.model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in found:
        layer: Any = module
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(adapter.model.get_submodule(parent), child, layer.get_base_layer())
    del adapter.model.peft_config
