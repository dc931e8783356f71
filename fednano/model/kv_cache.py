"""The keys and values of sequences that are being decoded, and the attention over them.

Each sequence has buffers of its own, so that it may join and leave any pass, and its attention is computed by itself,
so that its bits do not depend on who is beside it.

H: query heads   K: key heads   S: rows of a pass   T: new positions of one sequence   L: all its positions
C: positions that its buffers have room for   E: width of a head
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from fednano.model.attention import causal_mask
from fednano.model.packing import padded

NAME = "fednano_cached"
# Buffers grow by so many positions: a copy of a sequence's cache every so many steps, and little room to spare.
BLOCK_POSITIONS = 32


class SequenceCache:
    """One sequence's keys and values at every layer. ``length`` counts the positions of finished passes."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def size_bytes(self) -> int:
        return sum(buffer.nbytes for pair in self._layers.values() for buffer in pair)

    def append(self, layer: int, key_1KTE: Tensor, value_1KTE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [1, K, L, E] of this layer, the new ones last. Done again, it overwrites them."""
        new, end = key_1KTE.shape[2], self.length + key_1KTE.shape[2]
        pair = self._layers.get(layer)
        if pair is None or pair[0].shape[2] < end:
            pair = self._grown(pair, key_1KTE, end), self._grown(pair and pair[1:], value_1KTE, end)
            self._layers[layer] = pair
        for buffer_1KCE, new_1KTE in zip(pair, (key_1KTE, value_1KTE), strict=True):
            buffer_1KCE.narrow(2, self.length, new).copy_(new_1KTE)
        return pair[0].narrow(2, 0, end), pair[1].narrow(2, 0, end)

    def _grown(self, old: tuple[Tensor, ...] | None, like_1KTE: Tensor, length: int) -> Tensor:
        shape = (*like_1KTE.shape[:2], capacity(length), like_1KTE.shape[3])
        grown_1KCE = torch.empty(shape, dtype=like_1KTE.dtype, device=like_1KTE.device)
        if old:
            grown_1KCE.narrow(2, 0, self.length).copy_(old[0].narrow(2, 0, self.length))
        return grown_1KCE


def capacity(length: int) -> int:
    """The positions that a sequence of this length has room for."""
    return padded(length, BLOCK_POSITIONS)


class PassCache(Cache):  # type: ignore[misc]
    """What transformers takes for the cache of one pass: the sequences in it, each with its new positions.

    None stands for rows that belong to no sequence and are kept nowhere.
    """

    def __init__(self, sequences: Sequence[SequenceCache | None], new_lengths: Sequence[int]) -> None:
        super().__init__(layers=[])
        self._sequences = sequences
        self.new_lengths = list(new_lengths)
        # Of the layer that runs.
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Returns what it was given: the attention function reads ``pairs``."""
        keys, values = (torch.split(states, self.new_lengths, dim=2) for states in (key_states, value_states))
        self.pairs = [
            sequence.append(layer_idx, key, value) if sequence is not None else (key, value)
            for sequence, key, value in zip(self._sequences, keys, values, strict=True)
        ]
        return key_states, value_states


def cached_attention(
    module: nn.Module,
    query_1HSE: Tensor,
    key_1KSE: Tensor,
    value_1KSE: Tensor,
    attention_mask: Tensor | None,
    *,
    pass_cache: PassCache,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The output [1, S, H, E]; no weights. What a family needs besides was refused when the model was loaded."""
    del module, key_1KSE, value_1KSE
    assert attention_mask is None
    grouped = query_1HSE.shape[1] != pass_cache.pairs[0][0].shape[1]
    outputs = []
    queries = torch.split(query_1HSE, pass_cache.new_lengths, dim=2)
    for query, (key, value) in zip(queries, pass_cache.pairs, strict=True):
        new, length = query.shape[2], key.shape[2]
        if new == 1 and sliding_window is not None and sliding_window < length:
            key, value = (states.narrow(2, length - sliding_window, sliding_window) for states in (key, value))
        mask, is_causal = causal_mask(new, key.shape[2], sliding_window, query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


# With no mask function under the same name, transformers builds no mask and hands None through.
AttentionInterface.register(NAME, cached_attention)
