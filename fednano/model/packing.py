"""Several packed batches joined into one pass, so that each gets the very bits that it gets alone.

A matrix product's kernel depends on how many rows it has, and an elementwise one computes what is left over at its end
in another way. So every batch is padded to a multiple of ``row_tile`` rows, alone and joined alike: then each row is
computed as part of a whole tile, whatever stands beside it. Attention is computed for each sequence by itself anyway.

S: tokens of one packed batch   P: rows of a joined pass, padding included   D: hidden size
N: output positions of one batch   M: output positions of a joined pass, padding included
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

OutputKind = Literal["hidden_states", "logits"]
DEFAULT_ROW_TILE = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Passage:
    """What one client sends through the model at one time."""

    inputs_embeds_SD: Tensor
    sequence_lengths: tuple[int, ...]
    output_positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedPass:
    """Passages one after the other; the ranges say where each one's inputs and outputs lie, without their padding."""

    inputs_embeds_PD: Tensor
    position_ids_P: Tensor
    sequence_lengths: tuple[int, ...]
    output_positions: tuple[int, ...]
    input_ranges: tuple[slice, ...]
    output_ranges: tuple[slice, ...]


def padded(count: int, tile: int) -> int:
    """The least multiple of ``tile`` that is at least ``count``."""
    return count + -count % tile


def join(passages: Sequence[Passage], output_kind: OutputKind, row_tile: int) -> JoinedPass:
    """The passages as one pass; differentiable in their inputs."""
    rows: list[Tensor] = []
    lengths: list[int] = []
    outputs: list[int] = []
    input_ranges, output_ranges, start = [], [], 0
    for passage in passages:
        row_count = len(passage.inputs_embeds_SD)
        rows.append(_padded_rows(passage, row_tile))
        lengths += _padded_lengths(passage, row_tile)
        input_ranges.append(slice(start, start + row_count))
        output_ranges.append(slice(len(outputs), len(outputs) + len(passage.output_positions)))
        outputs += [start + position for position in _padded_outputs(passage, output_kind, row_tile)]
        start += padded(row_count, row_tile)
    return JoinedPass(
        inputs_embeds_PD=rows[0] if len(rows) == 1 else torch.cat(rows),
        position_ids_P=torch.cat([_position_ids(passage, row_tile) for passage in passages]),
        sequence_lengths=tuple(lengths),
        output_positions=tuple(outputs),
        input_ranges=tuple(input_ranges),
        output_ranges=tuple(output_ranges),
    )


def _padded_rows(passage: Passage, row_tile: int) -> Tensor:
    missing = -len(passage.inputs_embeds_SD) % row_tile
    return F.pad(passage.inputs_embeds_SD, (0, 0, 0, missing)) if missing else passage.inputs_embeds_SD


def _padded_lengths(passage: Passage, row_tile: int) -> list[int]:
    """Padding lengthens the last sequence: what comes after a token changes nothing for it."""
    *firsts, last = passage.sequence_lengths
    return [*firsts, last + -len(passage.inputs_embeds_SD) % row_tile]


def _padded_outputs(passage: Passage, output_kind: OutputKind, row_tile: int) -> list[int]:
    """Only the head computes with outputs as rows: it gets the last one repeated."""
    positions = list(passage.output_positions)
    missing = -len(positions) % row_tile if output_kind == "logits" else 0
    return positions + positions[-1:] * missing


def _position_ids(passage: Passage, row_tile: int) -> Tensor:
    """Padding stands at position 0, for a learned position past the longest sequence would not exist."""
    ranges = [torch.arange(length) for length in passage.sequence_lengths]
    return torch.cat([*ranges, torch.zeros(-len(passage.inputs_embeds_SD) % row_tile, dtype=torch.long)])
