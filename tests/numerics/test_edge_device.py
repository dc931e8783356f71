"""The edge half on another device than the CPU: every tensor is made where the others are, and the numbers stay."""

from collections.abc import Sequence

import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere
from torch import Tensor

from fednano.errors import SettingsInvalid
from fednano.gram import GramMean
from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import EncodedExample
from fednano.model.edge import NanoEdge, OutputKind, image_embeds
from fednano.model.parts import load_edge, resolve_model
from fednano.model.placement import choose_device, choose_encoder_type, place
from fednano.v1.run_pb2 import TrainConfig
from services.client.fisher_pass import fisher_information
from services.client.fisher_path import FisherPath
from services.client.trainer import LocalTraining, example_order

CPU = torch.device("cpu")


class Echo:
    """A language model behind a wire: what it gets and gives is on the CPU. Each output has heard all before it."""

    def forward(
        self, inputs_embeds_SD: Tensor, lengths: Sequence[int], positions: Sequence[int], kind: OutputKind
    ) -> Tensor:
        assert (kind, sum(lengths)) == ("hidden_states", len(inputs_embeds_SD))
        return inputs_embeds_SD.cpu().cumsum(0)[list(positions)].to(inputs_embeds_SD) / 20


def results(device: torch.device, encoder_type: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What an edge computes there, from the pictures to the adapters and the Fisher information."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = place(load_edge(resolve_model("nano") / "edge"), device, encoder_type)
    adapters = NanoAdapters(MODALITIES, hidden_size=128, rank=2, alpha=4)
    edge = NanoEdge(parts, adapters.to(device))
    pixels_BCHW = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    embeds_BPD = image_embeds(parts, pixels_BCHW).cpu().float()
    image = [parts.processor.image_token_id] * 16
    examples = [
        EncodedExample(prompt_ids=(1, *image, 9 + index), answer_ids=(7 + index, 2), image_embeds_PD=embeds_PD)
        for index, embeds_PD in enumerate(embeds_BPD)
    ]
    grams, path = GramMean(), FisherPath(lambda step: torch.Generator().manual_seed(step))
    training = LocalTraining(edge, Echo(), TrainConfig(batch_size=2, learning_rate=1e-2, local_epochs=2), fisher=path)
    training.run(examples, order=example_order(0, 1, "client-1"), after_step=lambda: None)
    fisher = fisher_information(edge, Echo(), examples, max_pass_tokens=50, after_batch=lambda: None)
    grams.add("image", image_embeds(parts, pixels_BCHW).float().flatten(0, 1))
    found = {f"adapter.{name}": parameter.detach().cpu() for name, parameter in adapters.named_parameters()}
    found |= {f"path.{name}": tensor for name, tensor in path.mean.mean().items()}
    return found | fisher | grams.mean(4) | {"embeds": embeds_BPD}


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_an_edge_on_another_device_mixes_nothing_with_the_cpu_and_computes_the_same() -> None:
    expected = results(CPU)
    with Elsewhere():
        found = results(ELSEWHERE)
    for name, tensor in expected.items():
        # Not to the bit: where a tensor lies in memory decides which kernel adds it up.
        assert _error(torch.as_tensor(found[name].numpy()), tensor) < 1e-4, name
    assert expected["adapter.image.up.weight"].any()


def test_the_device_that_is_not_there_is_found_out_by_a_tensor_that_stayed_behind() -> None:
    with Elsewhere(), pytest.raises(AssertionError, match="mixes devices"):
        torch.ones(3, device=ELSEWHERE) + torch.ones(3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_an_edge_on_a_gpu_computes_nearly_the_same_as_on_the_cpu() -> None:
    expected, found = results(CPU), results(choose_device("cuda"))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_bfloat16_encoders_change_features_by_less_than_two_percent_and_the_rest_stays_float32() -> None:
    exact, rounded = results(CPU), results(CPU, torch.bfloat16)
    assert 0 < _error(rounded["embeds"], exact["embeds"]) < 0.02
    assert {tensor.dtype for name, tensor in rounded.items() if "adapter" in name} == {torch.float32}


def test_a_tied_head_stays_tied_where_the_parts_are_moved() -> None:
    parts = load_edge(resolve_model("nano") / "edge")
    assert parts.head is not None
    parts.head.weight = parts.token_embedding.weight
    with Elsewhere():
        place(parts, ELSEWHERE, torch.float32)
    assert parts.head.weight is parts.token_embedding.weight


def test_a_device_that_is_not_there_is_refused_by_its_flag() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SettingsInvalid, match="--device: torch finds no cuda device"):
        choose_device("cuda")


def test_the_cpu_keeps_float32_unless_it_is_told_otherwise() -> None:
    assert choose_encoder_type("auto", CPU) == torch.float32
    assert choose_encoder_type("bfloat16", CPU) == torch.bfloat16
