"""A model with rounded weights: how far it is from the whole one, how small it is, that its gradients are its own.

S: tokens of a packed batch   D: hidden size   V: vocabulary
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from fednano.errors import ModelInvalid, SettingsInvalid
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.manifest import Manifest, language_digest, write_manifest
from fednano.model.quantized import Precision, QuantizedLinear

LENGTHS = (9, 3, 14)
# Of outputs and of gradients: the norm of the difference to that of the whole, in a model of random weights.
ERRORS: dict[Precision, tuple[float, float]] = {"int8": (0.01, 0.015), "int4": (0.15, 0.25)}
# The layers' bytes to those in float32: with int4, a scale of four bytes for 32 weights is a quarter of all.
BYTES: dict[Precision, float] = {"int8": 0.27, "int4": 0.16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        # As usual, the layers of a model that was never trained would hardly be heard beside its inputs.
        initializer_range=0.1,
    )
    return write(tmp_path_factory.mktemp("tiny"), config, 64)


def write(folder: Path, config: LlamaConfig | GPT2Config, hidden_size: int) -> Path:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    digest = language_digest(folder)
    write_manifest(Manifest(model="t", family="t", digest=digest, hidden_size=hidden_size, vocab_size=50), folder)
    return folder


def both_passes(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """The logits [S, V], and the gradient of the sum of their squares."""
    inputs_SD = torch.randn(26, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits_SV = model.forward(inputs_SD, LENGTHS, range(26), "logits")
    (grad_SD,) = torch.autograd.grad(logits_SV.square().sum(), inputs_SD)
    return logits_SV.detach(), grad_SD


def share(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("precision", ERRORS)
def test_rounded_weights_change_outputs_and_gradients_by_little(folder: Path, precision: Precision) -> None:
    whole, rounded = load_language_model(folder), load_language_model(folder, quantize=precision)
    for found, wanted, bound in zip(both_passes(rounded), both_passes(whole), ERRORS[precision], strict=True):
        assert bound / 3 < share(found, wanted) < bound
    assert rounded.manifest.digest == whole.manifest.digest
    assert (whole.quantize, rounded.quantize) == (None, precision)


@pytest.mark.parametrize("precision", ERRORS)
def test_the_gradient_is_that_of_the_model_that_was_computed(folder: Path, precision: Precision) -> None:
    rounded, plain = load_language_model(folder, quantize=precision), load_language_model(folder)
    for name, module in rounded._model.named_modules():
        if isinstance(module, QuantizedLinear):
            plain._model.get_submodule(name).weight.copy_(module.weight_OI())
    for found, wanted in zip(both_passes(rounded), both_passes(plain), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", BYTES)
def test_the_layers_take_as_few_bytes_as_they_should(folder: Path, precision: Precision) -> None:
    whole, rounded = load_language_model(folder), load_language_model(folder, quantize=precision)
    assert layer_bytes(rounded) / layer_bytes(whole) < BYTES[precision]
    held = [
        buffer
        for module in rounded._model.modules()
        if isinstance(module, QuantizedLinear)
        for buffer in module.buffers()
    ]
    assert all(rounded.is_weight(buffer) for buffer in held)


def layer_bytes(model: LanguageModel) -> int:
    layers = [
        module for module in model._model.model.layers.modules() if isinstance(module, nn.Linear | QuantizedLinear)
    ]
    return sum(tensor.nbytes for layer in layers for tensor in [*layer.parameters(), *layer.buffers()])


@pytest.mark.parametrize("precision", BYTES)
def test_decoding_gives_what_the_pass_gives(folder: Path, precision: Precision) -> None:
    model = load_language_model(folder, quantize=precision)
    inputs_SD = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    state = model.start_decoding()
    model.decode(state, inputs_SD[:4], [4], "logits")
    last = model.decode(state, inputs_SD[4:], [1], "logits")
    torch.testing.assert_close(last, model.forward(inputs_SD, [5], [4], "logits"), atol=1e-5, rtol=1e-5)


def test_without_torchao_the_error_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization.quant_primitives", None)
    with pytest.raises(SettingsInvalid, match=r"fednano\[quantize\]"):
        load_language_model(folder, quantize="int8")


def test_a_family_without_linear_layers_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ModelInvalid, match="--quantize int4"):
        load_language_model(write(tmp_path, config, 32), quantize="int4")
