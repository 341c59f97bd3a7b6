"""The first decoder layer's attention map, recomputed eagerly: fast attention kernels never make one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.base import UserError
from students.batch import wide
from students.data.pack import Batch


def _refuse_unknown(attention: Any) -> None:
    """Let through Llama's and Qwen2's attention: projections (with biases or not), rotary, grouped heads, and no more."""
    from transformers.models.llama.modeling_llama import LlamaAttention
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

    if type(attention) not in (LlamaAttention, Qwen2Attention):
        raise UserError(
            f"the tap 'attention' knows LlamaAttention and Qwen2Attention, and this language model has"
            f" {type(attention).__name__}; take energies that need no attention map"
        )
    if getattr(attention, "sliding_window", None) is not None:
        raise UserError(
            f"the tap 'attention' knows full attention, and this language model's first layer looks back"
            f" {attention.sliding_window} tokens only; take energies that need no attention map"
        )


def _seen(batch: Batch, row: Tensor, text: Tensor) -> Tensor:
    """Return [B, Q, L], True where a query may look at a key."""
    if batch.attention_mask.ndim == 4:
        return batch.attention_mask[row[:, None], 0, text]
    columns = torch.arange(batch.input_ids.shape[1], device=text.device)
    return (columns <= text[..., None]) & batch.attention_mask[row][:, None, :]


def first_attention(language: Any, embeds: Tensor, batch: Batch, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Recompute a Llama's or Qwen2's first attention map from the samples' own text to their images.

    Args:
        language: transformers' ``LlamaModel`` or ``Qwen2Model``.
        embeds: what enters its first layer [R, L, H], vision tokens in place.
        batch: the rows, packed or one sample each.
        keys: columns [R, K] of the vision tokens, -1 where a row has fewer.

    Returns:
        Probabilities [B, Q, K, heads], at least float32, without dropout, zero for keys that a row does not have, for samples
        without an image and beyond a sample's last token; and [B, Q] bool, True for tokens that exist.

    Raises:
        UserError: for a language model whose attention this does not recompute.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    layer = language.layers[0]
    attention = layer.self_attn
    _refuse_unknown(attention)
    states = layer.input_layernorm(embeds)
    shape = (*states.shape[:2], -1, attention.head_dim)
    positions = batch.position_ids
    if positions is None:  # as the model counts: from 0, padding included, for only differences of positions matter
        positions = torch.arange(states.shape[1], device=states.device)[None]
    cosine, sine = language.rotary_emb(states, position_ids=positions)
    query, key = apply_rotary_pos_emb(
        attention.q_proj(states).view(shape), attention.k_proj(states).view(shape), cosine, sine, unsqueeze_dim=2
    )
    row, there = batch.prompt_row, batch.text >= 0
    text = batch.text.clamp(min=0)
    seen = _seen(batch, row, text)
    with torch.autocast(embeds.device.type, enabled=False):
        asked = wide(query)[row[:, None], text]  # [B, Q, heads, channels]
        kept = wide(key).repeat_interleave(attention.num_key_value_groups, 2)[row]  # [B, L, heads, channels]
        scores = torch.einsum("bqhd,bkhd->bhqk", asked, kept) * attention.scaling
        # a query beyond a short sample's last token may be padding that sees nothing; it is masked out below
        seen = seen | ~there[..., None]
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    columns = keys[row][:, None, None, :]
    found = weights.gather(3, columns.clamp(min=0).expand(-1, weights.shape[1], weights.shape[2], -1))
    shown = ((batch.image >= 0)[:, None] & there)[:, None, :, None] & (columns >= 0)
    return found.masked_fill(~shown, 0.0).permute(0, 2, 3, 1), there
