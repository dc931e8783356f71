"""Causal attention over packed sequences, as a transformers attention function, and the key-value cache it reads.

Sequences lie one after the other in a batch of one. No mask is built for the whole: each sequence gets its own call of
scaled_dot_product_attention, so that packing changes no number and costs nothing for what no sequence may see.

Dimensions: H query heads, K key heads, S packed query positions, L packed key positions, E width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from fednano.errors import ModelInvalid

NAME = "fednano_packed"
# What some families hand to attention and this function does not compute.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


class PackedCache(Cache):  # type: ignore[misc]
    """Keys and values of each sequence, kept apart by layer; ``update`` returns them packed again.

    Set ``new_lengths`` before each pass: how many of its positions belong to each sequence, 0 for one that has ended.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.new_lengths: Sequence[int] = ()
        self._kept: dict[int, list[tuple[Tensor, Tensor] | None]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        lengths = list(self.new_lengths)
        kept = self._kept.setdefault(layer_idx, [None] * len(lengths))
        news = zip(torch.split(key_states, lengths, dim=2), torch.split(value_states, lengths, dim=2), strict=True)
        for index, (pair, length) in enumerate(zip(news, lengths, strict=True)):
            kept[index] = _append(kept[index], pair) if length else None
        live = [pair for pair in kept if pair is not None]
        return torch.cat([key for key, _ in live], dim=2), torch.cat([value for _, value in live], dim=2)


def _append(kept: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if kept is None:
        return new
    return torch.cat([kept[0], new[0]], dim=2), torch.cat([kept[1], new[1]], dim=2)


def packed_attention(
    module: nn.Module,
    query_1HSE: Tensor,
    key_1KLE: Tensor,
    value_1KLE: Tensor,
    attention_mask: Tensor | None,
    *,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The output [1, S, H, E]; no weights. ``key_lengths`` counts each sequence's cached positions too."""
    del module
    odd = [name for name in _UNSUPPORTED if rest.get(name) is not None]
    if odd or dropout or attention_mask is not None:
        raise ModelInvalid(f"this model's attention needs {', '.join(odd) or 'a mask or dropout'}: choose another")
    grouped = query_1HSE.shape[1] != key_1KLE.shape[1]
    segments = zip(
        torch.split(query_1HSE, list(query_lengths), dim=2),
        torch.split(key_1KLE, list(key_lengths), dim=2),
        torch.split(value_1KLE, list(key_lengths), dim=2),
        strict=True,
    )
    outputs = []
    for query, key, value in segments:
        mask, is_causal = _mask(query.shape[2], key.shape[2], sliding_window, query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> tuple[Tensor | None, bool]:
    """The mask and is_causal of one sequence, whose queries are the last of its keys."""
    reach = keys if window is None else min(window, keys)
    if reach == keys and queries in (1, keys):
        return None, queries == keys > 1
    age = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    return (age >= 0) & (age < reach), False


# With no mask function under the same name, transformers builds no mask and hands None through.
AttentionInterface.register(NAME, packed_attention)
