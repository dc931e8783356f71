"""Decode streams within a budget of memory, and among clients that train."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from joined_steps import Step, nano, ragged_steps
from prometheus_client import CollectorRegistry
from split_client import PATIENCE_S, Client, inputs
from test_shared_passes import assert_exact, clients, sample, server
from whole_and_split import nano_edge, ragged_examples

from fednano.errors import ServerBusy
from fednano.model.batch import pack_prompts
from fednano.model.language import LanguageModel
from fednano.rpc.channels import open_channel
from fednano.split.decode import greedy_decode
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.v1.split_service_pb2_grpc import SplitServiceStub
from fednano.wire.tensors import encode_tensor

# Of a block each.
TWO_SEQUENCES = 64
# A tenth of what the graphs of all steps take.
BUDGET_BYTES = 600_000


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return nano()


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    """Of a copy of the model: the other one is for the server's thread."""
    return ragged_steps(nano())


async def test_a_sequence_and_a_stream_that_end_give_their_room_back(model: LanguageModel) -> None:
    registry, position_bytes = CollectorRegistry(), model.decoder.position_bytes()
    async with server(model, registry) as (running, settings), open_channel(running.address, settings.security) as own:
        client = Client(SplitServiceStub(own).Decode(timeout=60), pb.DecodeRequest)
        await client.open(model)
        await client.decode(inputs(tokens=35), [2, 33])
        assert sample(registry, "cache_bytes") == (32 + 64) * position_bytes
        await client.decode(inputs(tokens=1), [1, 0])
        assert sample(registry, "cache_bytes") == 32 * position_bytes
        client.call.cancel()
        await _no_caches(registry)


async def test_past_the_budget_a_new_stream_is_refused_before_its_tensor_is_read_and_others_go_on(
    model: LanguageModel,
) -> None:
    registry, position_bytes = CollectorRegistry(), model.decoder.position_bytes()
    budget_bytes = TWO_SEQUENCES * position_bytes
    async with (
        server(model, registry, graph_memory_bytes=budget_bytes) as (running, settings),
        open_channel(running.address, settings.security) as channel,
    ):
        stub = SplitServiceStub(channel)
        holds, wants, grows = (Client(stub.Decode(timeout=60), pb.DecodeRequest) for _ in range(3))
        for client in (holds, wants, grows):
            await client.open(model)
        await holds.decode(inputs(tokens=3), [3])
        await grows.decode(inputs(tokens=32), [32])
        # Only the header is sent: who is refused has nothing read.
        spec, _ = encode_tensor(inputs(tokens=1), tpb.ENCODING_RAW)
        header = pb.DecodeStep(inputs_embeds=spec, sequence_lengths=[1], output_kind=pb.OUTPUT_KIND_LOGITS)
        await wants.send(step=header)
        with pytest.raises(ServerBusy, match="do not fit") as refused:
            await wants.read()
        assert refused.value.retry_after_s == 1.0
        with pytest.raises(ServerBusy, match="caches"):
            await grows.decode(inputs(tokens=1), [1])
        assert sample(registry, "cache_bytes") <= budget_bytes
        await holds.decode(inputs(tokens=1), [1])
        holds.call.cancel()
        await _no_caches(registry)


async def test_training_gives_way_to_caches_and_gets_the_same_bits(model: LanguageModel, steps: list[Step]) -> None:
    registry = CollectorRegistry()
    async with (
        server(model, registry, graph_memory_bytes=BUDGET_BYTES, activation_checkpointing="off") as running,
        clients(model, running, 6) as remotes,
        open_channel(running[0].address, running[1].security) as channel,
    ):
        client = Client(SplitServiceStub(channel).Decode(timeout=60), pb.DecodeRequest)
        await client.open(model)
        await client.decode(inputs(tokens=120), [60, 60])
        held_bytes = sample(registry, "cache_bytes")
        assert 0 < held_bytes < BUDGET_BYTES
        training = asyncio.create_task(assert_exact(remotes, steps, 2))
        while not training.done():
            await client.decode(inputs(tokens=1), [1, 0])
            assert sample(registry, "graph_bytes") + sample(registry, "cache_bytes") <= BUDGET_BYTES
            if sample(registry, "steps_total", kind="decode") > 40:
                break
        await training
        client.call.cancel()
    assert sample(registry, "recomputed_total") > 0


async def test_clients_that_evaluate_at_one_time_share_passes(model: LanguageModel) -> None:
    edges = [nano_edge(up_std=up_std) for up_std in (0.1, 0.3, 0.6, 1.0)]
    own = nano()
    processor = edges[0].parts.processor
    prompts = pack_prompts(ragged_examples(edges[0]), processor.image_token_id)
    wanted = []
    for edge in edges:
        state = own.start_decoding()
        wanted.append(
            greedy_decode(
                edge,
                lambda embeds, lengths, kind, state=state: own.decode(state, embeds, lengths, kind),
                prompts,
                eos_token_id=processor.eos_token_id,
                max_new_tokens=8,
            )
        )
    registry = CollectorRegistry()
    loop = asyncio.get_running_loop()
    async with server(model, registry, join_window_s=0.05) as running, clients(model, running, 4) as remotes:
        with ThreadPoolExecutor(4) as threads:
            works = (
                loop.run_in_executor(threads, remote.greedy_answers, edge, prompts, 8)
                for remote, edge in zip(remotes, edges, strict=True)
            )
            answers = await asyncio.gather(*works)
        await _no_caches(registry)
    assert answers == wanted
    steps = sample(registry, "steps_total", kind="decode")
    assert sample(registry, "pass_seconds_count", kind="decode") < steps / 2


async def _no_caches(registry: CollectorRegistry) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while sample(registry, "cache_bytes"):
            await asyncio.sleep(0.01)
