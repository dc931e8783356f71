"""What a servicer raises is what the caller can catch, with message and facts."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from fednano.config import Security
from fednano.errors import InternalFault, PeerUnavailable, ServerBusy, WireError
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.rpc.retry import call_with_retry
from fednano.rpc.server import RunningServer, serving
from fednano.rpc.status import from_rpc_error
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import split_service_pb2_grpc as pb_grpc

PLAINTEXT = Security(insecure=True)
SERVICE = "fednano.v1.SplitService"


class Refusing(pb_grpc.SplitServiceServicer):
    """Busy twice, then fine; its stream hits a bug after one answer."""

    def __init__(self) -> None:
        self.calls = 0

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        self.calls += 1
        if self.calls <= 2:
            raise ServerBusy("the queue is full", retry_after_s=1.5, queue="9")
        return pb.GetModelResponse(model=pb.Model(name="nano"))

    async def StreamSteps(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.StreamStepsResponse]:
        yield pb.StreamStepsResponse()
        raise ValueError("secret words of a bug")


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    def add(server: grpc.aio.Server) -> None:
        pb_grpc.add_SplitServiceServicer_to_server(Refusing(), server)

    async with serving({SERVICE: add}, "127.0.0.1:0", PLAINTEXT, grace_s=0.1) as running:
        yield running


@pytest.fixture
async def channel(server: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(server.address, PLAINTEXT) as opened:
        yield opened


async def caught(call: Any) -> WireError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value, "the server")


async def test_a_refusal_keeps_class_message_facts_and_delay(channel: grpc.aio.Channel) -> None:
    error = await caught(pb_grpc.SplitServiceStub(channel).GetModel(pb.GetModelRequest(), timeout=5))
    assert isinstance(error, ServerBusy)
    assert (error.message, error.facts, error.retry_after_s) == ("the queue is full", {"queue": "9"}, 1.5)


async def test_a_bug_in_a_stream_is_hidden_from_the_caller(channel: grpc.aio.Channel) -> None:
    call = pb_grpc.SplitServiceStub(channel).StreamSteps(timeout=5)
    assert await call.read() == pb.StreamStepsResponse()
    error = await caught(call.read())
    assert isinstance(error, InternalFault)
    assert "secret" not in error.message


async def test_a_retryable_refusal_is_tried_again(channel: grpc.aio.Channel) -> None:
    stub = pb_grpc.SplitServiceStub(channel)
    response = await call_with_retry(
        lambda: stub.GetModel(pb.GetModelRequest(), timeout=5), peer="the server", what="GetModel", give_up_after_s=20
    )
    assert response.model.name == "nano"


async def test_an_unreachable_peer_is_named() -> None:
    async with open_channel("127.0.0.1:1", PLAINTEXT) as nowhere:
        with pytest.raises(PeerUnavailable, match="the aggregator does not serve"):
            await wait_until_serving(nowhere, SERVICE, "the aggregator", timeout_s=0.5)
