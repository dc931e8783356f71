"""RunService as an operator sees it: every call, and that doing it twice does no harm."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from aggregator_inside import aggregator_inside
from aggregator_process import RandomClient, connect, run_config

from fednano.errors import AlreadyExists, ClientEvicted, FieldInvalid, ResourceNotFound, RunEnded, WireError
from fednano.rpc.status import from_rpc_error
from fednano.v1 import run_pb2
from fednano.v1 import run_service_pb2 as pb
from fednano.v1.run_service_pb2_grpc import RunServiceStub

if TYPE_CHECKING:
    from fednano.v1.run_service_pb2_grpc import RunServiceAsyncStub

RUN = "runs/test"


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with aggregator_inside(tmp_path / "state") as address, connect(address) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> "RunServiceAsyncStub":
    return RunServiceStub(channel)


async def create(stub: "RunServiceAsyncStub", run_id: str = "test", request_id: str = "") -> run_pb2.Run:
    run = run_pb2.Run(display_name="a run", config=run_config(rounds=1))
    request = pb.CreateRunRequest(run_id=run_id, run=run, request_id=request_id)
    return (await stub.CreateRun(request, timeout=10)).run


async def refused(call: Awaitable[object]) -> WireError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value, "the aggregator")


async def joined(channel: grpc.aio.Channel, folder: Path, *ids: str) -> list[RandomClient]:
    found = [RandomClient(channel, client_id, folder) for client_id in ids]
    for client in found:
        await client.join()
    return found


async def test_the_same_request_creates_one_run_and_another_one_is_refused(stub: "RunServiceAsyncStub") -> None:
    first = await create(stub, "", "request-1")
    assert (await create(stub, "", "request-1")).name == first.name
    other = pb.CreateRunRequest(request_id="request-1", run=run_pb2.Run(config=run_config(rounds=2)))
    error = await refused(stub.CreateRun(other, timeout=10))
    assert isinstance(error, AlreadyExists)
    assert error.facts["name"] == first.name
    assert error.facts["accepted"] != error.facts["offered"]
    assert len((await stub.ListRuns(pb.ListRunsRequest(), timeout=10)).runs) == 1


async def test_a_run_id_is_taken_once(stub: "RunServiceAsyncStub") -> None:
    await create(stub, "test", "request-1")
    assert isinstance(await refused(create(stub, "test", "request-2")), AlreadyExists)


async def test_pages_of_runs_skip_and_repeat_nothing_while_runs_are_added(stub: "RunServiceAsyncStub") -> None:
    for number in range(5):
        await create(stub, f"run-{number}")
    seen, token = [], ""
    while True:
        page = await stub.ListRuns(pb.ListRunsRequest(page_size=2, page_token=token), timeout=10)
        seen += [run.name for run in page.runs]
        await create(stub, f"later-{len(seen)}")
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"runs/run-{number}" for number in (4, 3, 2, 1, 0)]


async def test_pages_of_clients_and_rounds_and_measurements_have_all_of_them(
    channel: grpc.aio.Channel, stub: "RunServiceAsyncStub", tmp_path: Path
) -> None:
    await create(stub)
    await asyncio.gather(*(client.work() for client in await joined(channel, tmp_path, "a", "b")))
    first = await stub.ListClients(pb.ListClientsRequest(parent=RUN, page_size=1), timeout=10)
    rest = await stub.ListClients(pb.ListClientsRequest(parent=RUN, page_token=first.next_page_token), timeout=10)
    assert [client.name for client in [*first.clients, *rest.clients]] == [f"{RUN}/clients/a", f"{RUN}/clients/b"]
    turns = await stub.ListRounds(pb.ListRoundsRequest(parent=RUN, page_size=1), timeout=10)
    later = await stub.ListRounds(pb.ListRoundsRequest(parent=RUN, page_token=turns.next_page_token), timeout=10)
    assert [turn.number for turn in [*turns.rounds, *later.rounds]] == [0, 1]
    assert later.next_page_token == ""
    measured, token = [], ""
    while True:
        request = pb.ListMeasurementsRequest(parent=RUN, page_size=3, page_token=token)
        page = await stub.ListMeasurements(request, timeout=10)
        measured += page.measurements
        token = page.next_page_token
        if not token:
            break
    assert [each.sequence for each in measured] == list(range(1, len(measured) + 1))
    kept = {(each.round_number, each.client.rpartition("/")[2], each.key): each.value for each in measured}
    assert kept[0, "a", "test/accuracy"] == kept[1, "", "test/accuracy"] == 0.5
    assert kept[1, "b", "train/loss"] == kept[1, "", "train/loss"] == 1.0
    assert kept[1, "", "bytes/adapters"] == 10.0


async def test_a_page_token_that_is_not_ours_is_refused(stub: "RunServiceAsyncStub") -> None:
    await create(stub)
    request = pb.ListRoundsRequest(parent=RUN, page_token="the-next")  # noqa: S106 -- of a page
    error = await refused(stub.ListRounds(request, timeout=10))
    assert isinstance(error, FieldInvalid)
    assert error.facts["field"] == "page_token"


async def test_cancelling_twice_is_cancelling_once(stub: "RunServiceAsyncStub") -> None:
    await create(stub)
    first = (await stub.CancelRun(pb.CancelRunRequest(name=RUN), timeout=10)).run
    second = (await stub.CancelRun(pb.CancelRunRequest(name=RUN), timeout=10)).run
    assert first == second
    assert first.state == run_pb2.Run.STATE_CANCELLED
    assert isinstance(await refused(stub.PauseRun(pb.PauseRunRequest(name=RUN), timeout=10)), RunEnded)


async def test_an_evicted_client_is_out_and_may_not_return(
    channel: grpc.aio.Channel, stub: "RunServiceAsyncStub", tmp_path: Path
) -> None:
    await create(stub)
    (a,) = await joined(channel, tmp_path, "a")
    name = f"{RUN}/clients/a"
    for _ in range(2):
        client = (await stub.EvictClient(pb.EvictClientRequest(name=name), timeout=10)).client
        assert client.state == run_pb2.Client.STATE_EVICTED
    assert (await stub.GetClient(pb.GetClientRequest(name=name), timeout=10)).client.state == client.state
    assert isinstance(await refused(a.join()), ClientEvicted)
    assert isinstance(await refused(a.poll()), ClientEvicted)


async def test_what_does_not_exist_is_named(stub: "RunServiceAsyncStub") -> None:
    await create(stub)
    calls = [
        stub.GetRun(pb.GetRunRequest(name="runs/other"), timeout=10),
        stub.GetRound(pb.GetRoundRequest(name=f"{RUN}/rounds/7"), timeout=10),
        stub.GetClient(pb.GetClientRequest(name=f"{RUN}/clients/z"), timeout=10),
        stub.EvictClient(pb.EvictClientRequest(name=f"{RUN}/clients/z"), timeout=10),
        stub.ListMeasurements(pb.ListMeasurementsRequest(parent="runs/other"), timeout=10),
        stub.ResumeRun(pb.ResumeRunRequest(name="runs/other"), timeout=10),
    ]
    for call in calls:
        error = await refused(call)
        assert isinstance(error, ResourceNotFound)
        assert error.facts["name"] in error.message


async def test_an_adapter_is_exported_by_run_and_by_round(
    channel: grpc.aio.Channel, stub: "RunServiceAsyncStub", tmp_path: Path
) -> None:
    await create(stub)
    assert isinstance(await refused(_export(stub, RUN)), ResourceNotFound)
    await asyncio.gather(*(client.work() for client in await joined(channel, tmp_path, "a", "b")))
    newest, first, initial = [await _export(stub, name) for name in (RUN, f"{RUN}/rounds/1", f"{RUN}/rounds/0")]
    assert newest == first != initial


async def _export(stub: "RunServiceAsyncStub", name: str) -> str:
    """The digest that the header announces, once all of its bytes have come."""
    responses = [each async for each in stub.ExportAdapter(pb.ExportAdapterRequest(name=name), timeout=10)]
    assert sum(len(each.chunk.data) for each in responses[1:]) == responses[0].header.size_bytes
    return responses[0].header.sha256
