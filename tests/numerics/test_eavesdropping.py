"""What docs/threat-model.md says of a curious server is shown here: adapters and int8 are no privacy."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.eavesdropping import Follower, Reading, measure, read_answers, read_words


@pytest.fixture(scope="module")
def readings() -> dict[tuple[int, str], Reading]:
    torch.set_num_threads(1)
    return {(reading.steps, reading.encoding): reading for reading in measure([0, 40])}


@pytest.mark.parametrize("encoding", ["raw", "int8"])
def test_the_nearest_rows_of_the_public_embedding_are_all_the_words(
    readings: dict[tuple[int, str], Reading], encoding: str
) -> None:
    assert readings[0, encoding].words == 1.0


@pytest.mark.parametrize("encoding", ["raw", "int8"])
def test_an_adapter_hides_words_only_from_who_did_not_watch_its_training(
    readings: dict[tuple[int, str], Reading], encoding: str
) -> None:
    assert readings[40, encoding].words < 0.95
    assert readings[40, encoding].words_followed > 0.99


@pytest.mark.parametrize("steps", [0, 40])
@pytest.mark.parametrize("encoding", ["raw", "int8"])
def test_gradients_name_the_labels(readings: dict[tuple[int, str], Reading], steps: int, encoding: str) -> None:
    assert readings[steps, encoding].answers > 0.95


def test_words_that_are_not_near_are_not_read() -> None:
    torch.manual_seed(0)
    embedding_VD = torch.randn(50, 16)
    noise_MD = torch.randn(400, 16)
    assert (read_words(embedding_VD, noise_MD) == torch.arange(400) % 50).float().mean() < 0.1
    assert (Follower(embedding_VD).read(embedding_VD) == torch.arange(50)).all()


def test_where_logits_are_returned_the_only_negative_gradient_is_the_label() -> None:
    torch.manual_seed(0)
    logits_NV = torch.randn(32, 20, requires_grad=True)
    labels_N = torch.randint(20, (32,))
    torch.autograd.backward(F.cross_entropy(logits_NV, labels_N))
    assert logits_NV.grad is not None
    assert ((logits_NV.grad < 0).long().argmax(dim=1) == labels_N).all()
    assert (read_answers(torch.eye(20), logits_NV.grad) == labels_N).all()
