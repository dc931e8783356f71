"""The server finds out by itself whether sharing passes changes bits."""

import torch
from joined_steps import nano
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from fednano.model.attention import NAME
from fednano.model.language import LanguageModel
from fednano.model.manifest import Manifest
from fednano.model.packing import JoinedPass, OutputKind
from services.server.exactness import ROW_TILES, choose_batching, exact_row_tile


def test_the_preset_is_exact_with_the_tile_that_it_starts_with() -> None:
    model = nano()
    assert exact_row_tile(model) == model.row_tile == 8


class Inexact(LanguageModel):
    """As if some kernel rounded otherwise where a pass has many rows."""

    def forward_rows(self, joined: JoinedPass, inputs_embeds_PD: Tensor, output_kind: OutputKind) -> Tensor:
        outputs_M = super().forward_rows(joined, inputs_embeds_PD, output_kind)
        return outputs_M * (1 + 1e-6 * (len(inputs_embeds_PD) > 100))


def test_a_model_whose_bits_depend_on_its_neighbours_has_no_tile() -> None:
    exact = nano()
    model = Inexact(exact._model, exact.manifest)
    assert exact_row_tile(model) is None
    assert model.row_tile == 8
    assert choose_batching("auto", model) == choose_batching("exact", model) == "off"
    assert choose_batching("close", model) == "close"


def test_on_a_cpu_clients_share_passes_where_that_changes_no_bit() -> None:
    model = nano()
    model.row_tile = 1
    assert choose_batching("off", model) == "off"
    assert model.row_tile == 1
    assert choose_batching("auto", model) == "exact"
    assert model.row_tile == 8


def test_a_model_of_odd_widths_gets_a_tile_that_is_exact_for_it() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=51, hidden_size=40, intermediate_size=51, num_hidden_layers=2, num_attention_heads=4
    )
    plain = AutoModelForCausalLM.from_config(config, attn_implementation=NAME).eval().requires_grad_(False)
    manifest = Manifest(model="odd", family="odd", digest="0" * 64, hidden_size=40, vocab_size=51)
    assert exact_row_tile(LanguageModel(plain, manifest)) in ROW_TILES
