"""Causal attention over packed sequences, as a transformers attention function, for passes without a cache.

Sequences lie one after the other in a batch of one. No mask is built for the whole: each sequence gets its own call of
scaled_dot_product_attention, so that packing changes no number and costs nothing for what no sequence may see.

Dimensions: H query heads, K key heads, S packed positions, E width of a head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from fednano.errors import ModelInvalid

NAME = "fednano_packed"
# What some families hand to attention and this function does not compute.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


def packed_attention(
    module: nn.Module,
    query_1HSE: Tensor,
    key_1KSE: Tensor,
    value_1KSE: Tensor,
    attention_mask: Tensor | None,
    *,
    sequence_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The output [1, S, H, E]; no weights."""
    del module
    check_supported(rest, dropout, attention_mask)
    grouped = query_1HSE.shape[1] != key_1KSE.shape[1]
    lengths = list(sequence_lengths)
    segments = zip(*(torch.split(packed, lengths, dim=2) for packed in (query_1HSE, key_1KSE, value_1KSE)), strict=True)
    outputs = []
    for query, key, value in segments:
        mask, is_causal = causal_mask(query.shape[2], key.shape[2], sliding_window, query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def check_supported(rest: Mapping[str, object], dropout: float, attention_mask: Tensor | None) -> None:
    """Raises ModelInvalid where a family asks of attention what is not computed here."""
    odd = [name for name in _UNSUPPORTED if rest.get(name) is not None]
    if odd or dropout or attention_mask is not None:
        raise ModelInvalid(f"this model's attention needs {', '.join(odd) or 'a mask or dropout'}: choose another")


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> tuple[Tensor | None, bool]:
    """The mask and is_causal of one sequence, whose queries are the last of its keys."""
    reach = keys if window is None else min(window, keys)
    if reach == keys and queries in (1, keys):
        return None, queries == keys > 1
    age = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    return (age >= 0) & (age < reach), False


# With no mask function under the same name, transformers builds no mask and hands None through.
AttentionInterface.register(NAME, packed_attention)
