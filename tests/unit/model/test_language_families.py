"""Families beside the preset's: shared key heads, sliding windows, tied heads, biases, learned positions.

S: tokens of a packed batch   P: rows of a joined pass   D: hidden size   M: output positions of a joined pass
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from fednano.errors import ModelInvalid
from fednano.model.device_attention import NAME as DEVICE_ATTENTION
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.manifest import Manifest, language_digest, write_manifest
from fednano.model.packing import OutputKind, Passage, join

LENGTHS = (9, 3, 14)
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "a head for each query and for each key": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "learned positions, biases and a tied head": GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "shared key heads and a window": MistralConfig(**SIZES, head_dim=8, sliding_window=4),
    "shared key heads, biases and a tied head": Qwen2Config(**SIZES, tie_word_embeddings=True),
}


def write_model(folder: Path, config: Any) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    manifest = Manifest(model="tiny", family="tiny", digest=language_digest(folder), hidden_size=32, vocab_size=50)
    write_manifest(manifest, folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_passes_and_decoding_equal_plain_transformers(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, CONFIGS[name])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa").eval()
    packed = load_language_model(tmp_path)
    parts = torch.split(torch.randn(26, 32, generator=torch.Generator().manual_seed(1)), list(LENGTHS))
    with torch.no_grad():
        wanted = torch.cat([plain(inputs_embeds=part[None]).logits[0] for part in parts])
    output = packed.forward(torch.cat(parts), LENGTHS, range(26), "logits")
    torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-5)
    state = packed.start_decoding()
    packed.decode(state, torch.cat([part[:2] for part in parts]), [2, 2, 2], "logits")
    packed.decode(state, torch.cat([part[2:3] for part in parts]), [1, 1, 1], "logits")
    last = packed.decode(state, torch.cat([parts[0][3:], parts[2][3:]]), [6, 0, 11], "logits")
    torch.testing.assert_close(last, wanted[[8, 25]], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_gets_the_same_outputs_by_the_attention_for_a_gpu(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, CONFIGS[name])
    model = load_language_model(tmp_path)
    inputs_SD = torch.randn(26, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model.forward(inputs_SD, LENGTHS, range(26), "logits")
        model._model.set_attn_implementation(DEVICE_ATTENTION)
        found = model.forward(inputs_SD, LENGTHS, range(26), "logits")
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hidden_states", "logits"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_passage_has_the_same_bits_alone_and_joined_with_others(
    tmp_path: Path, name: str, kind: OutputKind, is_packed: bool
) -> None:
    write_model(tmp_path, CONFIGS[name])
    model = load_language_model(tmp_path)
    if is_packed:
        model.pack()
    generator = torch.Generator().manual_seed(2)
    passages = [passage(lengths, generator) for lengths in ((9, 3, 14), (1,), (64,), (30, 31), (2,), (17,))]
    together = both_passes(model, passages, kind)
    for alone, joined in zip([both_passes(model, [own], kind)[0] for own in passages], together, strict=True):
        assert torch.equal(alone[0], joined[0])
        assert torch.equal(alone[1], joined[1])
        assert alone[1].abs().max() > 0


@pytest.mark.parametrize("kind", ["hidden_states", "logits"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_weights_change_outputs_and_gradients_by_rounding_alone(
    tmp_path: Path, name: str, kind: OutputKind
) -> None:
    write_model(tmp_path, CONFIGS[name])
    plain, packed = load_language_model(tmp_path), load_language_model(tmp_path)
    packed.pack()
    generator = torch.Generator().manual_seed(2)
    passages = [passage(lengths, generator) for lengths in ((9, 3, 14), (1,), (64,))]
    for wanted, got in zip(both_passes(plain, passages, kind), both_passes(packed, passages, kind), strict=True):
        for near, one in zip(wanted, got, strict=True):
            torch.testing.assert_close(one, near, atol=1e-5 * float(near.abs().max()), rtol=1e-4)


def test_weights_packed_for_decoding_alone_leave_steps_their_bits(tmp_path: Path) -> None:
    write_model(tmp_path, CONFIGS["a head for each query and for each key"])
    plain, packed = load_language_model(tmp_path), load_language_model(tmp_path)
    packed.pack(decoding_only=True)
    assert packed.decoder.row_tile >= 1
    passages = [passage((9, 3, 14), torch.Generator().manual_seed(2))]
    for wanted, got in zip(
        both_passes(plain, passages, "logits"), both_passes(packed, passages, "logits"), strict=True
    ):
        assert all(torch.equal(near, one) for near, one in zip(wanted, got, strict=True))


def passage(lengths: tuple[int, ...], generator: torch.Generator) -> Passage:
    positions = tuple(range(0, sum(lengths), 3))
    inputs_embeds_SD = torch.randn(sum(lengths), 32, generator=generator)
    return Passage(inputs_embeds_SD=inputs_embeds_SD, sequence_lengths=lengths, output_positions=positions)


def both_passes(
    model: LanguageModel, passages: Sequence[Passage], kind: OutputKind
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each passage's outputs, and its inputs' gradient of the sum of their squares."""
    joined = join(passages, kind, model.row_tile)
    leaf_PD = joined.inputs_embeds_PD.detach().requires_grad_()
    outputs_M = model.forward_rows(joined, leaf_PD, kind)
    wanted = torch.cat([outputs_M[outputs] for outputs in joined.output_ranges])
    (grad_PD,) = torch.autograd.grad(wanted.square().sum(), leaf_PD)
    ranges = zip(joined.output_ranges, joined.input_ranges, strict=True)
    return [(outputs_M[outputs].detach(), grad_PD[inputs]) for outputs, inputs in ranges]


def test_attention_that_would_be_computed_wrongly_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8))
    with pytest.raises(ModelInvalid, match="softcap"):
        load_language_model(tmp_path)
