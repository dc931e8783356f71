"""Continuing sequences position by position, those of several streams in one pass.

A stream's numbers depend on nothing but what it was given: attention is computed for each sequence by itself, and the
rows of a pass are padded to a multiple of ``row_tile``, with which a row's bits were found not to depend on the others.

S: new positions of one stream   P: rows of a pass, padding included   D: hidden size   V: vocabulary
n: sequences of a stream that have not ended   M: those of all streams
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fednano.errors import FieldInvalid
from fednano.model.kv_cache import NAME, PassCache, SequenceCache, capacity
from fednano.model.packed_linear import PackedLinear, pack_linears
from fednano.model.packing import DEFAULT_ROW_TILE, OutputKind, padded


@dataclass(eq=False, kw_only=True)
class DecodingState:
    """The caches of one stream's sequences; None for one that has ended."""

    sequences: list[SequenceCache | None] = field(default_factory=list)

    @property
    def lengths(self) -> list[int | None]:
        """Positions so far."""
        return [None if sequence is None else sequence.length for sequence in self.sequences]

    def ends(self, sequence_lengths: Sequence[int]) -> list[int]:
        """The length of each sequence that goes on, after a step that adds so many positions."""
        starts = [length or 0 for length in self.lengths] or [0] * len(sequence_lengths)
        return [start + new for start, new in zip(starts, sequence_lengths, strict=True) if new]

    def capacity(self, sequence_lengths: Sequence[int]) -> int:
        """The positions that the caches have room for after such a step."""
        return sum(map(capacity, self.ends(sequence_lengths)))


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodeStep:
    """The positions that one stream appends; the first step fixes the sequences, later 0 ends one."""

    state: DecodingState
    inputs_embeds_SD: Tensor
    sequence_lengths: tuple[int, ...]


class Decoder:
    """A causal language model that appends. Not for two threads at once."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.row_tile = DEFAULT_ROW_TILE

    @torch.no_grad()
    def decode(self, steps: Sequence[DecodeStep], output_kind: OutputKind) -> list[Tensor]:
        """For each step the last output of every sequence that goes on, [n, D] or [n, V].

        Raises FieldInvalid where the lengths do not follow what a state has seen; then no state has changed.
        """
        for step in steps:
            check_decoding_lengths(step.state, step.sequence_lengths)
        for step in steps:
            _begin(step)
        sequences, news = _live(steps)
        outputs_M = self._pass(steps, sequences, news, output_kind)
        for sequence, new in zip(sequences, news, strict=True):
            sequence.length += new
        return list(torch.split(outputs_M[: len(news)], [sum(map(bool, step.sequence_lengths)) for step in steps]))

    def position_bytes(self) -> int:
        """What one position of a cache takes, found by trying."""
        state = DecodingState()
        weight = next(self._model.parameters())
        inputs_1D = torch.zeros(1, self._model.config.hidden_size, dtype=weight.dtype, device=weight.device)
        self.decode([DecodeStep(state=state, inputs_embeds_SD=inputs_1D, sequence_lengths=(1,))], "hidden_states")
        size_bytes = sum(sequence.size_bytes for sequence in state.sequences if sequence is not None)
        return size_bytes // capacity(1)

    def _pass(
        self, steps: Sequence[DecodeStep], sequences: list[SequenceCache], news: list[int], output_kind: OutputKind
    ) -> Tensor:
        """Outputs of the last position of each sequence, and those of the padding."""
        model, device, missing = self._model, self._model.device, -sum(news) % self.row_tile
        inputs_embeds_SD = torch.cat([step.inputs_embeds_SD.to(device, model.dtype) for step in steps])
        positions = [torch.arange(each.length, each.length + new) for each, new in zip(sequences, news, strict=True)]
        cached: list[SequenceCache | None] = [*sequences]
        lengths, ends_M = list(news), [end - 1 for end in accumulate(news)]
        if missing:
            # A learned position past the longest sequence would not exist: padding stands at position 0.
            positions.append(torch.zeros(missing, dtype=torch.long))
            cached.append(None)
            lengths.append(missing)
        if output_kind == "logits":
            ends_M += ends_M[-1:] * (padded(len(ends_M), self.row_tile) - len(ends_M))
        cache = PassCache(cached, lengths)
        runs = model if output_kind == "logits" else model.base_model
        ends = torch.tensor(ends_M, device=device)
        result = runs(
            inputs_embeds=F.pad(inputs_embeds_SD, (0, 0, 0, missing))[None],
            position_ids=torch.cat(positions).to(device)[None],
            past_key_values=cache,
            use_cache=True,
            pass_cache=cache,
            **({"logits_to_keep": ends} if output_kind == "logits" else {}),
        )
        outputs: Tensor = result.logits[0] if output_kind == "logits" else result.last_hidden_state[0, ends]
        return outputs


def decoder_of(model: Any, shared: Sequence[object], *, packs: bool) -> Decoder:
    """A decoder with the weights of ``model``, a transformers model, that are not copied, nor is what is ``shared``.

    ``packs`` does lay a copy of them out for it.
    """
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    kept = [*model.parameters(), *model.buffers(), *packed, *shared]
    twin = copy.deepcopy(model, {id(each): each for each in kept})
    twin.set_attn_implementation(NAME)
    if packs:
        pack_linears(twin, differentiable=False)
    return Decoder(twin)


def check_decoding_lengths(state: DecodingState, sequence_lengths: Sequence[int]) -> None:
    """Raises FieldInvalid unless these lengths may follow what the state has seen."""
    field_name = "sequence_lengths"
    if not state.sequences and not all(length > 0 for length in sequence_lengths):
        raise FieldInvalid("the first step gives every sequence at least one position", field=field_name)
    if state.sequences and len(state.sequences) != len(sequence_lengths):
        raise FieldInvalid(f"the first step fixed {len(state.sequences)} sequences", field=field_name)
    if any(old is None and new for old, new in zip(state.sequences, sequence_lengths, strict=False)):
        raise FieldInvalid("a sequence that has ended cannot go on", field=field_name)
    if not any(sequence_lengths) or min(sequence_lengths) < 0:
        raise FieldInvalid("at least one sequence goes on, by a positive length", field=field_name)


def _begin(step: DecodeStep) -> None:
    """Makes the caches of a first step, and frees those of sequences that end."""
    sequences = step.state.sequences or [SequenceCache() for _ in step.sequence_lengths]
    step.state.sequences = [
        sequence if new else None for sequence, new in zip(sequences, step.sequence_lengths, strict=True)
    ]


def _live(steps: Sequence[DecodeStep]) -> tuple[list[SequenceCache], list[int]]:
    """The sequences that go on, and by how many positions each."""
    sequences = [sequence for step in steps for sequence in step.state.sequences if sequence is not None]
    return sequences, [new for step in steps for new in step.sequence_lengths if new]
