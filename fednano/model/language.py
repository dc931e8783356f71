"""The frozen language half: embeddings in, hidden states or logits out, over packed sequences.

Dimensions: S tokens of a packed batch, B sequences, N output positions, D hidden size, V vocabulary, M output
positions of several batches with their padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fednano.errors import FieldInvalid, ModelInvalid
from fednano.model.attention import NAME, PackedCache
from fednano.model.layers import DecoderLayers
from fednano.model.manifest import Manifest, language_digest, read_manifest
from fednano.model.packing import DEFAULT_ROW_TILE, JoinedPass, OutputKind, Passage, join


@dataclass(kw_only=True)
class DecodingState:
    """The caches of one batch of answers; ``lengths`` counts positions so far, None for a sequence that has ended."""

    cache: PackedCache = field(default_factory=PackedCache)
    lengths: list[int | None] = field(default_factory=list)


class LanguageModel:
    """A transformers causal language model whose weights never change. Not for two threads at once."""

    def __init__(self, model: Any, manifest: Manifest) -> None:
        self._model = model
        self.manifest = manifest
        self.layers = DecoderLayers(model)
        # The same for every pass, alone or joined with others: see fednano.model.packing.
        self.row_tile = DEFAULT_ROW_TILE
        self.hidden_size = manifest.hidden_size
        self.vocab_size = manifest.vocab_size
        self.max_sequence_length = int(model.config.max_position_embeddings)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        tensors = [*model.parameters(), *model.buffers()]
        self._weight_addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def forward(
        self,
        inputs_embeds_SD: Tensor,
        sequence_lengths: Sequence[int],
        output_positions: Sequence[int],
        output_kind: OutputKind,
    ) -> Tensor:
        """Outputs [N, D] or [N, V] at positions of the packed batch; autograd reaches the inputs, never the weights."""
        passage = Passage(
            inputs_embeds_SD=inputs_embeds_SD,
            sequence_lengths=tuple(sequence_lengths),
            output_positions=tuple(output_positions),
        )
        joined = join([passage], output_kind, self.row_tile)
        return self.forward_rows(joined, joined.inputs_embeds_PD, output_kind)[joined.output_ranges[0]]

    def forward_rows(self, joined: JoinedPass, inputs_embeds_PD: Tensor, output_kind: OutputKind) -> Tensor:
        """Outputs [M, D] or [M, V] of all passages; each one's rows have the bits that ``forward`` gives it alone.

        ``inputs_embeds_PD`` are those of ``joined``, or a leaf of their values.
        """
        lengths, positions_M = joined.sequence_lengths, joined.output_positions
        return self._pass(inputs_embeds_PD, joined.position_ids_P, lengths, lengths, positions_M, output_kind, None)

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` shares its memory with a weight, and so costs nothing to keep."""
        return tensor.untyped_storage().data_ptr() in self._weight_addresses

    @property
    def layer_count(self) -> int:
        return int(self._model.config.num_hidden_layers)

    def start_decoding(self) -> DecodingState:
        return DecodingState()

    @torch.no_grad()
    def decode(
        self,
        state: DecodingState,
        inputs_embeds_SD: Tensor,
        sequence_lengths: Sequence[int],
        output_kind: OutputKind,
    ) -> Tensor:
        """Appends positions and returns the last output of each live sequence, [n, D] or [n, V].

        The first call fixes the sequences; later 0 ends one and frees its cache. FieldInvalid if that is not kept.
        """
        check_decoding_lengths(state, sequence_lengths)
        starts = [length or 0 for length in state.lengths] or [0] * len(sequence_lengths)
        lengths = [start + new if new else None for start, new in zip(starts, sequence_lengths, strict=True)]
        state.cache.new_lengths, state.lengths = tuple(sequence_lengths), lengths
        live = [(start, new) for start, new in zip(starts, sequence_lengths, strict=True) if new]
        news = [new for _, new in live]
        ends_N = (torch.tensor(news).cumsum(0) - 1).tolist()
        position_ids_S = _positions([start for start, _ in live], news)
        keys = [start + new for start, new in live]
        return self._pass(inputs_embeds_SD, position_ids_S, news, keys, ends_N, output_kind, state.cache)

    def _pass(
        self,
        inputs_embeds_SD: Tensor,
        position_ids_S: Tensor,
        query_lengths: Sequence[int],
        key_lengths: Sequence[int],
        output_positions: Sequence[int],
        output_kind: OutputKind,
        cache: PackedCache | None,
    ) -> Tensor:
        positions_N = torch.tensor(list(output_positions), dtype=torch.long, device=self.device)
        wants_logits = output_kind == "logits"
        runs = self._model if wants_logits else self._model.base_model
        # The model itself applies the head, to these positions only, with whatever else its family does to logits.
        only = {"logits_to_keep": positions_N} if wants_logits else {}
        result = runs(
            inputs_embeds=inputs_embeds_SD.to(device=self.device, dtype=self.dtype)[None],
            position_ids=position_ids_S.to(self.device)[None],
            past_key_values=cache,
            use_cache=cache is not None,
            query_lengths=tuple(query_lengths),
            key_lengths=tuple(key_lengths),
            **only,
        )
        outputs: Tensor = result.logits[0] if wants_logits else result.last_hidden_state[0, positions_N]
        return outputs


def check_decoding_lengths(state: DecodingState, sequence_lengths: Sequence[int]) -> None:
    """Raises FieldInvalid unless these lengths may follow what the state has seen."""
    field_name = "sequence_lengths"
    if not state.lengths and not all(length > 0 for length in sequence_lengths):
        raise FieldInvalid("the first step gives every sequence at least one position", field=field_name)
    if state.lengths and len(state.lengths) != len(sequence_lengths):
        raise FieldInvalid(f"the first step fixed {len(state.lengths)} sequences", field=field_name)
    if any(old is None and new for old, new in zip(state.lengths, sequence_lengths, strict=False)):
        raise FieldInvalid("a sequence that has ended cannot go on", field=field_name)
    if not any(sequence_lengths) or min(sequence_lengths) < 0:
        raise FieldInvalid("at least one sequence goes on, by a positive length", field=field_name)


def load_language_model(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LanguageModel:
    """The model in ``folder`` (a transformers folder with our manifest), frozen.

    Raises ModelInvalid, naming the file, where the files are missing or are not those that the manifest was made for.
    """
    manifest = read_manifest(folder)
    digest = language_digest(folder)
    if digest != manifest.digest:
        message = f"{folder}: the files' digest is {digest}, its manifest says {manifest.digest}; copy the folder again"
        raise ModelInvalid(message, file=str(folder))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=NAME, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelInvalid(f"{folder} is no causal language model: {error}", file=str(folder)) from error
    model.to(device).eval().requires_grad_(False)
    if (model.config.hidden_size, model.config.vocab_size) != (manifest.hidden_size, manifest.vocab_size):
        message = f"{folder / 'config.json'} and manifest.json differ in hidden_size or vocab_size; cut the model again"
        raise ModelInvalid(message, file=str(folder / "config.json"))
    loaded = LanguageModel(model, manifest)
    with torch.no_grad():
        # A family whose attention is not computed here says so now, not to the first client.
        loaded.forward(torch.zeros(1, loaded.hidden_size), [1], [0], "logits")
    return loaded


def _positions(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
