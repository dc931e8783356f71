"""With how many rows of padding decode streams share passes without a change of bits: found by trying, once, at start.

S: new positions of one stream   D: hidden size   n: sequences of a stream that go on   V: vocabulary
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fednano.model.decoding import DecodeStep, DecodingState
from fednano.model.language import LanguageModel
from fednano.model.packing import OutputKind

ROW_TILES = (1, 2, 4, 8, 16, 32, 64)
# Each stream's prompts. All of them go on by single positions, then more of them than fill any tile.
_STREAMS: tuple[tuple[int, ...], ...] = ((3,), (1,), (9, 24), (5, 31, 2), (17,))
_COMPANY: tuple[int, ...] = (2,) * 61
_SINGLE_STEPS = 3
_KINDS: tuple[OutputKind, ...] = ("hidden_states", "logits")


def exact_decode_tile(model: LanguageModel) -> int | None:
    """The least tile with which every stream has the same bits alone and among others; None if none of those tried.

    Leaves the decoder with the tile that it had.
    """
    decoder = model.decoder
    before = decoder.row_tile
    try:
        for tile in ROW_TILES:
            decoder.row_tile = tile
            if all(_is_exact(model, kind) for kind in _KINDS):
                return tile
        return None
    finally:
        decoder.row_tile = before


def _is_exact(model: LanguageModel, kind: OutputKind) -> bool:
    alone = [_decoded(model, [stream], kind)[0] for stream in _STREAMS]
    groups = (_STREAMS, _STREAMS[:2], (*_STREAMS, _COMPANY))
    # The company is not looked at.
    return all(
        torch.equal(one, other)
        for group in groups
        for one, other in zip(alone, _decoded(model, group, kind), strict=False)
    )


def _decoded(model: LanguageModel, streams: Sequence[Sequence[int]], kind: OutputKind) -> list[Tensor]:
    """All outputs of each stream, which go through the same passes."""
    states = [DecodingState() for _ in streams]
    inputs = [list(_inputs(model, stream)) for stream in streams]
    outputs: list[list[Tensor]] = [[] for _ in streams]
    for at in range(1 + _SINGLE_STEPS):
        steps = [
            DecodeStep(
                state=state,
                inputs_embeds_SD=own[at],
                sequence_lengths=tuple(length if at == 0 else 1 for length in _within(model, stream)),
            )
            for state, own, stream in zip(states, inputs, streams, strict=True)
        ]
        for own_outputs, output in zip(outputs, model.decoder.decode(steps, kind), strict=True):
            own_outputs.append(output)
    return [torch.cat(own) for own in outputs]


def _inputs(model: LanguageModel, stream: Sequence[int]) -> Iterator[Tensor]:
    """The prompts [S, D], then single positions."""
    generator = torch.Generator().manual_seed(len(stream))
    yield torch.randn(sum(_within(model, stream)), model.hidden_size, generator=generator)
    for _ in range(_SINGLE_STEPS):
        yield torch.randn(len(stream), model.hidden_size, generator=generator)


def _within(model: LanguageModel, stream: Sequence[int]) -> list[int]:
    """No sequence outgrows the model."""
    return [max(1, min(length, model.max_sequence_length - _SINGLE_STEPS)) for length in stream]
