"""Whether sharing a pass changes bits on this build of torch, with this model: found by trying, once, at start.

S: tokens of a packed batch   D: hidden size   N: output positions   V: vocabulary
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fednano.model.language import LanguageModel
from fednano.model.packing import OutputKind, Passage
from services.server.decode_exactness import exact_decode_tile
from services.server.passes import run_group
from services.server.settings import Batching

ROW_TILES = (8, 16, 32, 64)
# Fewer rows than any tile, a row more than a tile, ragged sequences.
_LENGTHS: tuple[tuple[int, ...], ...] = ((3,), (1,), (9, 24), (40, 5, 31), (17,))
# What makes a pass of them as long as shared passes are, for kernels divide many rows in another way than few.
_COMPANY: tuple[int, ...] = (128,) * 7
_KINDS: tuple[OutputKind, ...] = ("hidden_states", "logits")


def choose_batching(asked: Batching, model: LanguageModel) -> Batching:
    """What ``auto`` and ``exact`` come to with this model on this machine; sets its row tiles to what it takes.

    Where no tile is exact, no passes are shared.
    """
    if asked == "auto":
        asked = "exact" if model.device.type == "cpu" else "close"
    if asked != "exact":
        model.decoder.row_tile = 1
        return asked
    tile, decode_tile = exact_row_tile(model), exact_decode_tile(model)
    model.row_tile = tile or model.row_tile
    model.decoder.row_tile = decode_tile or 1
    return "exact" if tile and decode_tile else "off"


def exact_row_tile(model: LanguageModel) -> int | None:
    """The least tile with which every passage has the same bits alone and among others; None if none of those tried.

    Leaves the model with the tile that it had.
    """
    before = model.row_tile
    try:
        for tile in ROW_TILES:
            model.row_tile = tile
            if all(_is_exact(model, kind) for kind in _KINDS):
                return tile
        return None
    finally:
        model.row_tile = before


def _is_exact(model: LanguageModel, kind: OutputKind) -> bool:
    passages = _passages(model, _LENGTHS)
    alone = [_both_passes(model, [passage], kind)[0] for passage in passages]
    crowd = [*passages, *_passages(model, [_COMPANY])]
    return all(_are_equal(alone, _both_passes(model, group, kind)) for group in (passages, crowd))


def _are_equal(alone: Sequence[tuple[Tensor, Tensor]], joined: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """The company that a crowd has besides is not looked at."""
    pairs = zip(alone, joined, strict=False)
    return all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


def _passages(model: LanguageModel, lengths: Sequence[tuple[int, ...]]) -> list[Passage]:
    generator = torch.Generator().manual_seed(0)
    passages = []
    for wished in lengths:
        own = tuple(min(length, model.max_sequence_length) for length in wished)
        inputs_embeds_SD = torch.randn(sum(own), model.hidden_size, generator=generator)
        passages.append(
            Passage(
                inputs_embeds_SD=inputs_embeds_SD.to(model.device, model.dtype),
                sequence_lengths=own,
                output_positions=tuple(range(0, sum(own), 3)),
            )
        )
    return passages


def _both_passes(model: LanguageModel, passages: Sequence[Passage], kind: OutputKind) -> list[tuple[Tensor, Tensor]]:
    """Outputs [N, D] or [N, V] and gradients of the inputs [S, D] of each passage."""
    graph = run_group(model, passages, kind, keeps_graph=True)
    grad_output_M = torch.zeros_like(graph.outputs_M)
    for output_range in graph.joined.output_ranges:
        # The same for a passage wherever it stands, and different in every place of it.
        rows = grad_output_M[output_range]
        rows.copy_(torch.linspace(-1, 1, rows.numel()).reshape(rows.shape))
    (grad_inputs_PD,) = torch.autograd.grad(graph.outputs_M, graph.inputs_embeds_PD, grad_output_M)
    ranges = zip(graph.joined.output_ranges, graph.joined.input_ranges, strict=True)
    return [(graph.outputs_M.detach()[outputs], grad_inputs_PD[inputs]) for outputs, inputs in ranges]
