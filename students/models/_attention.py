"""The first decoder layer's attention map, recomputed eagerly: fast attention kernels never make one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.base import UserError
from students.batch import wide
from students.data.pack import Batch


def first_attention(language: Any, embeds: Tensor, batch: Batch, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Recompute a Llama's first attention map from the samples' own text to their images.

    Args:
        language: transformers' ``LlamaModel``.
        embeds: what enters its first layer [R, L, H], vision tokens in place.
        batch: the packed rows.
        keys: columns [R, n_v] of the vision tokens.

    Returns:
        Probabilities [B, Q, n_v, heads], at least float32, without dropout, zero for samples without an image and beyond a
        sample's last token; and [B, Q] bool, True for tokens that exist.

    Raises:
        UserError: for a language model whose attention this does not recompute.
    """
    from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

    layer = language.layers[0]
    attention = layer.self_attn
    if type(attention) is not LlamaAttention:
        raise UserError(f"the tap 'attention' knows LlamaAttention, and this language model has {type(attention).__name__}")
    states = layer.input_layernorm(embeds)
    shape = (*states.shape[:2], -1, attention.head_dim)
    cosine, sine = language.rotary_emb(states, position_ids=batch.position_ids)
    query, key = apply_rotary_pos_emb(
        attention.q_proj(states).view(shape), attention.k_proj(states).view(shape), cosine, sine, unsqueeze_dim=2
    )
    row, there = batch.prompt_row, batch.text >= 0
    text = batch.text.clamp(min=0)
    seen = batch.attention_mask[row[:, None], 0, text]  # [B, Q, L]
    with torch.autocast(embeds.device.type, enabled=False):
        asked = wide(query)[row[:, None], text]  # [B, Q, heads, channels]
        kept = wide(key).repeat_interleave(attention.num_key_value_groups, 2)[row]  # [B, L, heads, channels]
        scores = torch.einsum("bqhd,bkhd->bhqk", asked, kept) * attention.scaling
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    columns = keys[row][:, None, None, :].expand(-1, weights.shape[1], weights.shape[2], -1)
    shown = (batch.image >= 0)[:, None] & there
    return weights.gather(3, columns).permute(0, 2, 3, 1).masked_fill(~shown[..., None, None], 0.0), there
