"""The frozen language half: embeddings in, hidden states or logits out, over packed sequences.

Dimensions: S tokens of a packed batch, B sequences, N output positions, D hidden size, V vocabulary, M output
positions of several batches with their padding.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from fednano.errors import ModelInvalid
from fednano.model.decoding import Decoder, DecodeStep, DecodingState, decoder_of
from fednano.model.device_attention import PackedLayout, attention_name
from fednano.model.layers import DecoderLayers
from fednano.model.manifest import Manifest, check_language_half, read_manifest
from fednano.model.packed_linear import can_pack, pack_linears, packed_bytes
from fednano.model.packing import DEFAULT_ROW_TILE, JoinedPass, OutputKind, Passage, join
from fednano.model.quantized import Precision, quantize_linears


class LanguageModel:
    """A transformers causal language model whose weights never change. Not for two threads at once."""

    def __init__(
        self, model: Any, manifest: Manifest, *, quantize: Precision | None = None, may_end: bool = True
    ) -> None:
        """``may_end`` says whether a pass may end between two layers."""
        self._model = model
        # Its digest is that of the files, whatever was rounded of them since.
        self.manifest = manifest
        self.quantize = quantize
        self.layers = DecoderLayers(model, may_end=may_end)
        # The same for every pass, alone or joined with others: see fednano.model.packing.
        self.row_tile = DEFAULT_ROW_TILE
        self._packs_decoder = False
        self.hidden_size = manifest.hidden_size
        self.vocab_size = manifest.vocab_size
        self.max_sequence_length = int(model.config.max_position_embeddings)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        tensors = [*model.parameters(), *model.buffers()]
        self._weight_addresses = {storage_of(tensor).data_ptr() for tensor in tensors}

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
        return self._pass(inputs_embeds_PD, joined.position_ids_P, lengths, positions_M, output_kind)

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` shares its memory with a weight, and so costs nothing to keep."""
        return storage_of(tensor).data_ptr() in self._weight_addresses

    @property
    def layer_count(self) -> int:
        return int(self._model.config.num_hidden_layers)

    def packed_bytes(self, *, decoding_only: bool = False) -> int:
        """What ``pack`` would take; 0 where it would do nothing."""
        return packed_bytes(self._model, differentiable=not decoding_only) if can_pack(self._model) else 0

    def pack(self, *, decoding_only: bool = False) -> None:
        """Lays weights out for faster passes, if that can be done here; other bits from then on. Before any pass."""
        if not can_pack(self._model):
            return
        if decoding_only:
            self._packs_decoder = True
        else:
            pack_linears(self._model, differentiable=True)

    @cached_property
    def decoder(self) -> Decoder:
        """What appends to sequences; made when it is first asked for."""
        return decoder_of(self._model, [self.layers], packs=self._packs_decoder)

    def start_decoding(self) -> DecodingState:
        return DecodingState()

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
        step = DecodeStep(state=state, inputs_embeds_SD=inputs_embeds_SD, sequence_lengths=tuple(sequence_lengths))
        return self.decoder.decode([step], output_kind)[0]

    def _pass(
        self,
        inputs_embeds_SD: Tensor,
        position_ids_S: Tensor,
        sequence_lengths: Sequence[int],
        output_positions: Sequence[int],
        output_kind: OutputKind,
    ) -> Tensor:
        positions_N = torch.tensor(list(output_positions), dtype=torch.long, device=self.device)
        wants_logits = output_kind == "logits"
        runs = self._model if wants_logits else self._model.base_model
        # The model itself applies the head, to these positions only, with whatever else its family does to logits.
        only = {"logits_to_keep": positions_N} if wants_logits else {}
        result = runs(
            inputs_embeds=inputs_embeds_SD.to(device=self.device, dtype=self.dtype)[None],
            position_ids=position_ids_S.to(self.device)[None],
            use_cache=False,
            sequence_lengths=tuple(sequence_lengths),
            layout=PackedLayout(sequence_lengths, self.device),
            **only,
        )
        outputs: Tensor = result.logits[0] if wants_logits else result.last_hidden_state[0, positions_N]
        return outputs


def load_language_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    quantize: Precision | None = None,
) -> LanguageModel:
    """The model in ``folder`` (a transformers folder with our manifest), frozen; its linear layers rounded if wanted.

    Raises ModelInvalid, naming the file, where the files are missing or are not those that the manifest was made for.
    """
    model, manifest = read_language_model(folder, dtype, torch.device(device))
    if quantize is not None:
        quantize_linears(model, quantize)
    loaded = LanguageModel(model.to(device), manifest, quantize=quantize)
    try_out(loaded)
    return loaded


def read_language_model(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, Manifest]:
    """The frozen transformers model in ``folder``, on the CPU still, with the attention for ``device``.

    Raises ModelInvalid as ``load_language_model`` does.
    """
    manifest = read_manifest(folder)
    check_language_half(folder, manifest)
    model = _from_pretrained(folder, dtype, device)
    model.eval().requires_grad_(False)
    if (model.config.hidden_size, model.config.vocab_size) != (manifest.hidden_size, manifest.vocab_size):
        message = f"{folder / 'config.json'} and manifest.json differ in hidden_size or vocab_size; cut the model again"
        raise ModelInvalid(message, file=str(folder / "config.json"))
    return model, manifest


def _from_pretrained(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """All weights must be there, save those of the token embedding: a half that was cut off has none."""
    verbosity = transformers_logging.get_verbosity()
    # It warns of what is left out; what is missing besides gets an error of ours.
    transformers_logging.set_verbosity_error()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention_name(device),
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelInvalid(f"{folder} is no causal language model: {error}", file=str(folder)) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    embedding = next(name for name, each in model.named_modules() if each is model.get_input_embeddings())
    missing = set(found["missing_keys"])
    if f"{embedding}.weight" in missing and not model.config.tie_word_embeddings:
        missing.remove(f"{embedding}.weight")
        # Inputs come as embeddings, so that this one is never asked: it gives its memory back.
        model.set_input_embeddings(nn.Embedding(1, model.config.hidden_size, dtype=dtype))
    if missing:
        message = f"{folder} lacks the tensors {', '.join(sorted(missing)[:5])} ({len(missing)} in all); cut it again"
        raise ModelInvalid(message, file=str(folder))
    return model


@torch.no_grad()
def try_out(model: LanguageModel) -> None:
    """Raises ModelInvalid where attention is not computed as the family wants it: now, not to the first client."""
    model.forward(torch.zeros(1, model.hidden_size), [1], [0], "logits")


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """Where the numbers lie, of a tensor that is spread over processes those of this one."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.untyped_storage()
