"""Any gRPC client can use the services: it asks which there are and what they take, and needs nothing of ours."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from aggregator_inside import aggregator_inside
from aggregator_process import connect
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

OURS = ["fednano.v1.AggregatorService", "fednano.v1.RunService"]


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with aggregator_inside(tmp_path / "state") as address, connect(address) as opened:
        yield opened


async def ask(
    channel: grpc.aio.Channel, request: reflection_pb2.ServerReflectionRequest
) -> reflection_pb2.ServerReflectionResponse:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    return await anext(aiter(stub.ServerReflectionInfo(iter([request]), timeout=10)))


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    answer = await ask(channel, reflection_pb2.ServerReflectionRequest(list_services=""))
    names = [service.name for service in answer.list_services_response.service]
    assert set(OURS) < set(names)
    assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} < set(names)


async def test_a_method_is_called_with_nothing_but_what_reflection_tells(channel: grpc.aio.Channel) -> None:
    pool = await _reflected_pool(channel, "fednano.v1.RunService")
    method = pool.FindServiceByName("fednano.v1.RunService").methods_by_name["ListRuns"]
    request_class, response_class = (
        message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type)
    )
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=response_class.FromString,
    )
    response = await call(json_format.ParseDict({"pageSize": 5}, request_class()), timeout=10)
    assert json_format.MessageToDict(response, always_print_fields_with_no_presence=True) == {
        "runs": [],
        "nextPageToken": "",
    }


async def test_each_service_reports_its_health(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ["", *OURS]:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_can_be_watched(channel: grpc.aio.Channel) -> None:
    watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=OURS[0]), timeout=10)
    assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()


async def test_a_method_without_an_implementation_says_so(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=10)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def _reflected_pool(channel: grpc.aio.Channel, symbol: str) -> descriptor_pool.DescriptorPool:
    """All that the symbol's file rests on, in a pool of its own."""
    answer = await ask(channel, reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
    known: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    wanted = [_file(content) for content in answer.file_descriptor_response.file_descriptor_proto]
    while wanted:
        file = wanted.pop()
        known[file.name] = file
        for missing in set(file.dependency) - set(known):
            found = await ask(channel, reflection_pb2.ServerReflectionRequest(file_by_filename=missing))
            wanted += [_file(content) for content in found.file_descriptor_response.file_descriptor_proto]
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    while len(added) < len(known):
        for file in known.values():
            if file.name not in added and added.issuperset(file.dependency):
                pool.Add(file)
                added.add(file.name)
    return pool


def _file(content: bytes) -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto.FromString(content)
