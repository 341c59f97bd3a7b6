"""Gradient checkpointing: which activations of the student's blocks the backward pass makes again instead of keeping them."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

#: All of a block, all but what is dear to make, or nothing.
Recompute: TypeAlias = Literal[True, False, "selective"]

_ATEN = torch.ops.aten
#: What "selective" keeps: matrix products and attention, nearly all of a block's arithmetic. Norms, activation functions,
#: rotations and sums are made again; they are most of what a block keeps, and cost a pass over memory each.
DEAR = frozenset({
    _ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default,
    _ATEN._scaled_dot_product_flash_attention.default, _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default, _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
})  # fmt: skip


def enable(model: Any, how: Recompute) -> None:
    """Let a model's blocks make activations again; values and gradients stay what they are.

    Args:
        model: a ``PreTrainedModel`` in whose blocks transformers can checkpoint.
        how: True for everything but the blocks' inputs, "selective" for everything but :data:`DEAR`, False for nothing.
    """
    if not how:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    # one method under two names: transformers renamed it between the versions that this runs with
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(options)


def _policy(context: object, operation: object, *given: object, **named: object) -> CheckpointPolicy:  # noqa: ARG001
    return CheckpointPolicy.MUST_SAVE if operation in DEAR else CheckpointPolicy.PREFER_RECOMPUTE
