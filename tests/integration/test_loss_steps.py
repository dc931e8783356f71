"""Steps with labels: only where the operator allows them and the client asks, shared like others, checked like others.

S: tokens of a packed batch   N: answer positions   D: hidden size
"""

import asyncio
from typing import Any

import pytest
import torch
from split_client import LENGTHS, NANO, POSITIONS, Client, inputs, split_service, steps
from torch import Tensor

from fednano.errors import FieldInvalid, StreamMalformed, Unsupported
from fednano.model.language import LanguageModel, load_language_model
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.tensors import encode_tensor

IDS = [3, 0, 7, 1]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(NANO)


@pytest.fixture(scope="module")
def own_model() -> LanguageModel:
    """The copy that computes what the server should have answered; not for the server's thread."""
    return load_language_model(NANO)


async def opened(client: Client, model: LanguageModel, *, loss_on_server: bool = True) -> Client:
    opening = pb.OpenSession(
        model_digest=model.manifest.digest,
        run="runs/test",
        encoding=tpb.ENCODING_RAW,
        loss_on_server=loss_on_server,
    )
    await client.send(open_session=opening)
    await client.read()
    return client


async def ask(client: Client, step_id: int, inputs_SD: Tensor, **changes: Any) -> tuple[list[float], Tensor]:
    spec, payload = encode_tensor(inputs_SD, tpb.ENCODING_RAW)
    fields: dict[str, Any] = {
        "step_id": step_id,
        "inputs_embeds": spec,
        "sequence_lengths": LENGTHS,
        "output_positions": POSITIONS,
        "answer_ids": IDS,
        "weights": [0.25] * len(IDS),
    }
    await client.send(loss=pb.LossStep(**(fields | changes)))
    await client.send_chunks(payload)
    result = (await client.read()).loss_result
    assert result.step_id == step_id
    return list(result.nll), await client.read_tensor(result.grad_inputs_embeds)


def computed_here(model: LanguageModel, inputs_SD: Tensor) -> tuple[list[float], Tensor]:
    leaf_SD = inputs_SD.clone().requires_grad_()
    logits_NV = model.forward(leaf_SD, LENGTHS, POSITIONS, "logits")
    nll_N = torch.nn.functional.cross_entropy(logits_NV, torch.tensor(IDS), reduction="none")
    (grad_SD,) = torch.autograd.grad(nll_N, leaf_SD, torch.full((4,), 0.25))
    return nll_N.tolist(), grad_SD


async def test_clients_with_labels_share_passes_and_get_the_bits_they_get_alone(
    model: LanguageModel, own_model: LanguageModel
) -> None:
    async with split_service(model, allow_loss_on_server=True, join_window_s=0.2) as stub:
        clients = [await opened(steps(stub), model) for _ in range(4)]
        for step_id in (1, 2):
            answers = await asyncio.gather(*(ask(client, step_id, inputs(seed)) for seed, client in enumerate(clients)))
            for seed, (nll, grad_SD) in enumerate(answers):
                wanted_nll, wanted_SD = computed_here(own_model, inputs(seed))
                assert nll == wanted_nll
                assert torch.equal(grad_SD, wanted_SD)


async def test_a_server_takes_no_labels_unless_its_operator_allows_it(model: LanguageModel) -> None:
    async with split_service(model) as stub:
        with pytest.raises(Unsupported, match="--allow-loss-on-server") as refused:
            await opened(steps(stub), model)
        assert refused.value.facts["field"] == "open_session.loss_on_server"
        assert not refused.value.retryable


async def test_labels_that_come_unasked_for_end_the_session(model: LanguageModel) -> None:
    async with split_service(model, allow_loss_on_server=True) as stub:
        client = await opened(steps(stub), model, loss_on_server=False)
        with pytest.raises(StreamMalformed, match="without loss_on_server"):
            await ask(client, 1, inputs())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer_ids": [3, 0, 7]}, "answer_ids must be 4"),
        ({"answer_ids": [3, 0, 7, -1]}, "answer_ids must be 4"),
        ({"answer_ids": [3, 0, 7, 1 << 30]}, "answer_ids must be 4"),
        ({"weights": [0.25]}, "weights must be 4"),
        ({"weights": [0.25, 0.25, 0.25, float("nan")]}, "weights must be 4"),
        ({"output_positions": [], "answer_ids": [], "weights": []}, "output_positions must"),
        ({"sequence_lengths": [5, 9, 3]}, "sequence_lengths must"),
    ],
)
async def test_a_header_that_does_not_fit_is_refused_and_quotes_no_label(
    model: LanguageModel, changes: dict[str, Any], words: str
) -> None:
    async with split_service(model, allow_loss_on_server=True) as stub:
        client = await opened(steps(stub), model)
        with pytest.raises(FieldInvalid, match=words) as refused:
            await ask(client, 1, inputs(), **changes)
        assert str(1 << 30) not in refused.value.message
        # Nobody else notices.
        await ask(await opened(steps(stub), model), 1, inputs())


async def test_a_step_whose_inputs_are_not_finite_is_refused_alone(model: LanguageModel) -> None:
    async with split_service(model, allow_loss_on_server=True, join_window_s=0.2) as stub:
        good, bad = [await opened(steps(stub), model) for _ in range(2)]
        wrong_SD = inputs(1)
        wrong_SD[0, 0] = torch.nan
        answer, refusal = await asyncio.gather(ask(good, 1, inputs()), ask(bad, 1, wrong_SD), return_exceptions=True)
        assert isinstance(refusal, FieldInvalid)
        assert not isinstance(answer, BaseException)
