"""Causal attention over packed sequences on a GPU: one kernel for all of them, however many there are.

In half precision torch's flash attention for sequences of varying length, which has no mask at all; in float32, or
where torch has no such kernel, flex attention under a block mask, whose blocks between two sequences are passed over.
Either gives what fednano.model.attention gives, to the rounding of the type, and not the same bits.

Dimensions: H query heads, K key heads, S packed positions, E width of a head, B sequences.
"""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from fednano.model.attention import NAME as SEGMENTS_NAME
from fednano.model.attention import check_supported

NAME = "fednano_packed_device"
VARLEN_MODULE = "torch.nn.attention.varlen"
VARLEN_TYPES = (torch.float16, torch.bfloat16)
# The widest head that flash attention's kernels take.
VARLEN_WIDEST_HEAD = 256

Kernel = Literal["varlen", "flex"]
# It returns something else than a tensor only where it is asked to.
plain_flex = cast(Callable[..., Tensor], flex_attention)


class PackedLayout:
    """Which rows make a sequence, as the kernels want to be told; made once for all layers of a pass."""

    def __init__(self, sequence_lengths: Sequence[int], device: torch.device) -> None:
        self.longest = max(sequence_lengths)
        self._lengths = tuple(sequence_lengths)
        self._device = device
        self._masks: dict[int | None, BlockMask] = {}

    @cached_property
    def starts(self) -> Tensor:
        """The first row of each sequence, and the end of the last one; [B + 1]."""
        lengths_B = torch.tensor(self._lengths, dtype=torch.int32)
        return torch.nn.functional.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0)).to(self._device)

    @cached_property
    def _sequence_of_S(self) -> Tensor:
        numbers_B = torch.arange(len(self._lengths))
        return numbers_B.repeat_interleave(torch.tensor(self._lengths)).to(self._device)

    def block_mask(self, window: int | None) -> BlockMask:
        """Of all layers with this window."""
        if window not in self._masks:
            rows = sum(self._lengths)
            self._masks[window] = create_block_mask(
                self._may_see(window), None, None, rows, rows, device=self._device, _compile=self._device.type == "cuda"
            )
        return self._masks[window]

    def _may_see(self, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        sequence_of_S, reach = self._sequence_of_S, window or self.longest

        def may_see(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            is_own = sequence_of_S[query] == sequence_of_S[key]
            return is_own & (query >= key) & (query - key < reach)

        return may_see


def attention_name(device: torch.device) -> str:
    """The attention function for passes on ``device``."""
    return NAME if device.type == "cuda" else SEGMENTS_NAME


def choose_kernel(device: torch.device, dtype: torch.dtype, head_width: int) -> Kernel:
    fits = device.type == "cuda" and dtype in VARLEN_TYPES and head_width <= VARLEN_WIDEST_HEAD
    return "varlen" if fits and find_spec(VARLEN_MODULE) is not None else "flex"


def device_attention(
    module: nn.Module,
    query_1HSE: Tensor,
    key_1KSE: Tensor,
    value_1KSE: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: PackedLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The output [1, S, H, E]; no weights."""
    del module
    check_supported(rest, dropout, attention_mask)
    kernel = choose_kernel(query_1HSE.device, query_1HSE.dtype, query_1HSE.shape[-1])
    attend = _varlen if kernel == "varlen" else _flex
    return attend(query_1HSE, key_1KSE, value_1KSE, layout, scaling, sliding_window), None


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query_SHE, key_SKE, value_SKE = (packed[0].transpose(0, 1) for packed in (query, key, value))
    output_SHE = varlen_attn(
        query_SHE,
        key_SKE,
        value_SKE,
        layout.starts,
        layout.starts,
        layout.longest,
        layout.longest,
        scale=scale,
        # A window counts the position itself.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output_SHE, Tensor)
    return output_SHE[None]


def _flex(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, window: int | None
) -> Tensor:
    # Not compiled it computes all scores, which is for tests alone.
    attend = _compiled_flex() if query.device.type == "cuda" else plain_flex
    grouped = query.shape[1] != key.shape[1]
    output = attend(query, key, value, block_mask=layout.block_mask(window), scale=scale, enable_gqa=grouped)
    return output.transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    """For rows of any number: passes are ragged."""
    return torch.compile(plain_flex, dynamic=True)


AttentionInterface.register(NAME, device_attention)
