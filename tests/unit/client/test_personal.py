"""Two adapters side by side add what each would add, weighted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednano.methods import global_weight
from fednano.v1 import run_pb2
from services.client.local_work import new_adapters
from services.client.personal import combined, personal_training

CONFIG = run_pb2.AdapterConfig(rank=3, alpha=6, modalities=["image", "text"], hidden_size=7)


@settings(max_examples=20, deadline=None)
@given(weight=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_inference_is_x_and_w_of_the_global_adapter_and_the_rest_of_the_own(weight: float, seed: int) -> None:
    torch.manual_seed(seed)
    whole, own = new_adapters(CONFIG), new_adapters(CONFIG)
    for adapters in (whole, own):
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter)
    both, x_MD = combined(whole.state_dict(), own.state_dict(), weight, CONFIG), torch.randn(5, 7)
    for modality in ("image", "text"):
        added = [adapters(x_MD, modality) - x_MD for adapters in (whole, own)]
        expected = x_MD + weight * added[0] + (1 - weight) * added[1]
        torch.testing.assert_close(both(x_MD, modality), expected, rtol=1e-4, atol=1e-4)


def test_the_second_stage_trains_as_a_round_does_unless_said_otherwise() -> None:
    config = run_pb2.RunConfig(train=run_pb2.TrainConfig(local_epochs=2, local_steps=9, learning_rate=0.5))
    assert personal_training(config) == config.train
    config.personal.local_epochs = 5
    train = personal_training(config)
    assert (train.local_epochs, train.local_steps, train.learning_rate) == (5, 0, 0.5)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_both_weigh_the_same_where_nobody_says_otherwise(weight: float) -> None:
    config = run_pb2.RunConfig()
    assert global_weight(config) == 0.5
    config.personal.global_weight = weight
    assert global_weight(config) == weight
