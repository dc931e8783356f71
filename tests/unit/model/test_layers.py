"""Between two layers a pass may end; and a graph of the layers' inputs alone gives the bits of the whole one.

S: tokens of a packed batch   D: hidden size
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from fednano.model.attention import NAME
from fednano.model.language import LanguageModel
from fednano.model.manifest import Manifest
from fednano.model.packing import OutputKind

LENGTHS, LAYERS = (9, 3, 14), 3
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64),
    "mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=4),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
}


class EndedHere(Exception):
    """What this test's checks raise."""


class Countdown:
    """A check that is passed so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> None:
        if not self.left:
            raise EndedHere
        self.left -= 1


def tiny(config: Any) -> LanguageModel:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation=NAME).eval().requires_grad_(False)
    return LanguageModel(plain, Manifest(model="tiny", family="tiny", digest="0" * 64, hidden_size=32, vocab_size=50))


def both_passes(model: LanguageModel, kind: OutputKind = "hidden_states") -> tuple[Tensor, Tensor]:
    leaf_SD = torch.randn(26, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    outputs = model.forward(leaf_SD, LENGTHS, range(0, 26, 3), kind)
    (grad_SD,) = torch.autograd.grad(outputs, leaf_SD, torch.linspace(-1, 1, outputs.numel()).reshape(outputs.shape))
    return outputs.detach(), grad_SD


@pytest.mark.parametrize("kind", ["hidden_states", "logits"])
@pytest.mark.parametrize("name", CONFIGS)
def test_checkpointed_layers_give_the_bits_of_retained_ones(name: str, kind: OutputKind) -> None:
    model = tiny(CONFIGS[name])
    retained = both_passes(model, kind)
    with model.layers.checkpointed():
        checkpointed = both_passes(model, kind)
    assert all(torch.equal(a, b) for a, b in zip(retained, checkpointed, strict=True))
    assert retained[1].abs().max() > 0


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_pass_ends_before_its_next_layer_in_either_direction(name: str, checkpointed: bool) -> None:
    model = tiny(CONFIGS[name])
    whole = both_passes(model)
    # Forward, then backward; where a layer is computed again, that is a part of its backward pass.
    for times in range(2 * LAYERS):
        with model.layers.checked(Countdown(times)), pytest.raises(EndedHere):
            _one_way(model, checkpointed)
    enough = Countdown(2 * LAYERS)
    with model.layers.checked(enough):
        _one_way(model, checkpointed)
    assert enough.left == 0
    # Nothing is left of those that were ended.
    assert all(torch.equal(a, b) for a, b in zip(whole, both_passes(model), strict=True))


def _one_way(model: LanguageModel, checkpointed: bool) -> None:
    if not checkpointed:
        both_passes(model)
        return
    with model.layers.checkpointed():
        both_passes(model)
