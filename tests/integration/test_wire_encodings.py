"""Each encoding of tensors between clients and the LLM server, over real gRPC: steps, decoding, whole runs, refusals.

S: tokens of a packed batch   N: outputs   D: hidden size
"""

import asyncio
from pathlib import Path
from typing import get_args

import pytest
import torch
from agents_inside import PATIENCE_S, Peers, agent, asked, create, peers, run_config
from split_client import NANO, Client, forward_header, in_process, inputs, split_service, steps
from torch import Tensor

from fednano.config import read_settings
from fednano.data.icon_federation import write_icon_federation
from fednano.errors import FieldInvalid, Unsupported
from fednano.model.language import LanguageModel, load_language_model
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as rpb
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.encodings import ENCODING_NAMES
from fednano.wire.tensors import decode_tensor, encode_tensor
from services.server.settings import ServerSettings, WireEncoding

EXAMPLES = 24


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(NANO)


@pytest.fixture(scope="module")
def own_model() -> LanguageModel:
    """The copy that computes what the server should have answered; not for the server's thread."""
    return load_language_model(NANO)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    write_icon_federation(folder, client_count=2, alpha=1.0, seed=0, train_count=EXAMPLES, val_count=2, test_count=4)
    return folder


def over_the_wire(tensor: Tensor, encoding: "tpb.Encoding.ValueType") -> Tensor:
    spec, payload = encode_tensor(tensor, encoding)
    return decode_tensor(spec, bytearray(payload))


@pytest.mark.parametrize("encoding", ENCODING_NAMES, ids=ENCODING_NAMES.values())
async def test_all_that_an_encoding_changes_is_what_it_does_to_each_tensor(
    model: LanguageModel, own_model: LanguageModel, encoding: "tpb.Encoding.ValueType"
) -> None:
    grad_ND = 1e-9 * torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    async with split_service(model) as stub:
        client = steps(stub)
        client.encoding = encoding
        assert (await client.open(model, encoding)).encoding == encoding
        output_ND = await client.forward(1, inputs())
        grad_SD = await client.backward(1, grad_ND)
    wanted_ND, wanted_SD = in_process(
        own_model, over_the_wire(inputs(), encoding), over_the_wire(grad_ND, encoding), "hidden_states"
    )
    assert torch.equal(output_ND, over_the_wire(wanted_ND, encoding))
    assert torch.equal(grad_SD, over_the_wire(wanted_SD, encoding))


@pytest.mark.parametrize("encoding", ENCODING_NAMES, ids=ENCODING_NAMES.values())
async def test_decoding_takes_and_gives_every_encoding(
    model: LanguageModel, own_model: LanguageModel, encoding: "tpb.Encoding.ValueType"
) -> None:
    async with split_service(model) as stub:
        client = Client(stub.Decode(timeout=60), pb.DecodeRequest)
        client.encoding = encoding
        await client.open(model, encoding)
        logits = [await client.decode(inputs(tokens=7), [4, 3]), await client.decode(inputs(seed=2, tokens=2), [1, 1])]
    state = own_model.start_decoding()
    for answer, (sent, lengths) in zip(logits, ((inputs(tokens=7), [4, 3]), (inputs(2, 2), [1, 1])), strict=True):
        wanted = own_model.decode(state, over_the_wire(sent, encoding), lengths, "logits")
        # Decoding may share a pass with other sessions; what it rounds then is below what is tested here.
        torch.testing.assert_close(answer, over_the_wire(wanted, encoding), rtol=1e-2, atol=0.05)


async def run_of_two(found: Peers, run_id: str, *encodings: WireEncoding) -> dict[str, float]:
    """The round's metrics of a run of one round, each agent with an encoding of its own."""
    await create(found, run_id, run_config(round_count=1))
    agents = [agent(number, found, f"runs/{run_id}", encoding) for number, encoding in enumerate(encodings, start=1)]
    await asyncio.wait_for(asyncio.gather(*(each.run() for each in agents)), PATIENCE_S)
    run = (await asked(found, lambda stub: stub.GetRun(rpb.GetRunRequest(name=f"runs/{run_id}"), timeout=10))).run
    assert run.state == run_pb2.Run.STATE_SUCCEEDED
    name = rpb.GetRoundRequest(name=f"runs/{run_id}/rounds/1")
    return dict((await asked(found, lambda stub: stub.GetRound(name, timeout=10))).round.metrics)


async def test_two_agents_do_a_run_with_every_encoding_and_send_as_many_bytes_as_it_promises(
    tmp_path: Path, model: LanguageModel, examples: Path
) -> None:
    async with peers(model, tmp_path, examples) as found:
        metrics = {name: await run_of_two(found, name, name, name) for name in get_args(WireEncoding)}
    losses = {name: each["train/loss"] for name, each in metrics.items()}
    gradients_bytes = {name: each["bytes/gradients"] for name, each in metrics.items()}
    shares = {name: sent / gradients_bytes["raw"] for name, sent in gradients_bytes.items()}
    assert shares["bfloat16"] == 0.5
    # A scale for each tensor, and a scale for each 64 elements.
    assert shares["float16"] == pytest.approx(0.5, rel=1e-3)
    assert shares["int8"] == (1 + 4 / 64) / 4
    assert losses == pytest.approx(dict.fromkeys(losses, losses["raw"]), rel=0.02)
    assert len(set(losses.values())) == len(losses)


async def test_clients_of_one_run_need_not_agree(tmp_path: Path, model: LanguageModel, examples: Path) -> None:
    async with peers(model, tmp_path, examples) as found:
        metrics = await run_of_two(found, "demo", "int8", "raw")
    assert metrics["train/loss"] > 0


async def test_an_agent_whose_encoding_is_not_on_offer_ends_with_the_names_of_those_that_are(
    tmp_path: Path, model: LanguageModel, examples: Path
) -> None:
    narrow = ServerSettings(insecure=True, wire_encodings=("raw", "bfloat16"))
    async with peers(model, tmp_path, examples, narrow) as found:
        with pytest.raises(Unsupported, match="--wire-encoding one of raw, bfloat16"):
            await asyncio.wait_for(agent(1, found, wire_encoding="int8").run(), PATIENCE_S)


async def test_a_session_in_an_encoding_that_is_not_on_offer_is_refused(model: LanguageModel) -> None:
    async with split_service(model, wire_encodings=("bfloat16", "raw")) as stub:
        served = (await stub.GetModel(pb.GetModelRequest(), timeout=10)).model
        assert list(served.encodings) == [tpb.ENCODING_BFLOAT16, tpb.ENCODING_RAW]
        for encoding, name in ((tpb.ENCODING_FLOAT16, "float16"), (77, "77")):
            with pytest.raises(Unsupported, match=f"{name} is not on offer here.*bfloat16, raw") as refused:
                await steps(stub).open(model, encoding)  # type: ignore[arg-type]
            assert refused.value.facts == {"field": "open_session.encoding", "value": name}
        with pytest.raises(FieldInvalid, match="RAW keeps every bit"):
            await steps(stub).open(model, tpb.ENCODING_UNSPECIFIED)


async def test_a_tensor_in_another_encoding_than_was_granted_ends_the_session(model: LanguageModel) -> None:
    spec, _ = encode_tensor(inputs(), tpb.ENCODING_FLOAT16)
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model, tpb.ENCODING_BFLOAT16)
        # Exact tensors are always welcome.
        await client.forward(1, inputs())
        await client.send(forward=forward_header(spec, step_id=2))
        with pytest.raises(FieldInvalid, match="came as float16, but this session was granted bfloat16"):
            await client.read()


def test_the_server_reads_its_encodings_from_a_flag_and_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDNANO_WIRE_ENCODINGS", "raw, int8")
    assert ServerSettings(insecure=True).wire_encodings == ("raw", "int8")
    flags = ["--insecure", "--wire-encodings", "bfloat16,float16"]
    assert read_settings(ServerSettings, flags).wire_encodings == ("bfloat16", "float16")
