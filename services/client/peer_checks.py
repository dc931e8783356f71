"""What the doctor finds of the client's peers: connection, clock, model."""

import asyncio
import time
from collections.abc import Mapping

import grpc.aio
from grpc_health.v1 import health_pb2

from fednano.errors import FednanoError, PeerUnavailable, WireError
from fednano.rpc.channels import HEALTH_CHECK, open_channel
from fednano.rpc.interceptor import CLOCK_KEY, VERSION_KEY
from fednano.rpc.peer_channel import refuse_revoked, why_untrusted
from fednano.rpc.replicas import replica_addresses
from fednano.rpc.retry import call_once
from fednano.v1.split_service_pb2 import GetModelRequest, Model
from fednano.v1.split_service_pb2_grpc import SplitServiceStub
from services.client.checks import Row, fail, ok, warn
from services.client.joining import check_digest, check_encoding
from services.client.settings import ClientSettings

CALL_TIMEOUT_S = 5.0
# Certificates are made good for a little before they are issued; more than this makes them and time-outs go wrong.
MOST_SKEW_S = 30.0


async def check_peers(settings: ClientSettings, model_digest: str) -> list[Row]:
    """``model_digest`` is the edge half's, "" where it could not be read."""
    checks = [
        _server(f"server {address}", address, settings, model_digest)
        for address in replica_addresses(settings.server, settings.client_id)
    ]
    checks.append(_aggregator(f"aggregator {settings.aggregator}", settings))
    return [row for rows in await asyncio.gather(*checks) for row in rows]


async def _server(name: str, address: str, settings: ClientSettings, model_digest: str) -> list[Row]:
    try:
        async with open_channel(address, settings.security) as channel:
            rows = await _reached(name, channel, "fednano.v1.SplitService", f"the LLM server at {address}")
            stub = SplitServiceStub(channel)
            answer = await call_once(lambda: stub.GetModel(GetModelRequest(), timeout=CALL_TIMEOUT_S), peer=name)
    except FednanoError as error:
        return [fail(name, error.message)]
    return [*rows, _model(f"{name}, model", answer.model, settings, model_digest)]


async def _aggregator(name: str, settings: ClientSettings) -> list[Row]:
    """Which model its run is for is compared when the client joins: there is nothing to ask without joining."""
    try:
        async with open_channel(settings.aggregator, settings.security) as channel:
            peer = f"the aggregator at {settings.aggregator}"
            return await _reached(name, channel, "fednano.v1.AggregatorService", peer)
    except FednanoError as error:
        return [fail(name, error.message)]


async def _reached(name: str, channel: grpc.aio.Channel, service: str, peer: str) -> list[Row]:
    """Rows of the connection and of the clocks. Raises a FednanoError with what TLS says, where it is that."""
    check = channel.unary_unary(
        HEALTH_CHECK,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    await refuse_revoked(channel, peer)
    start_s = time.time()
    try:
        call = check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_TIMEOUT_S)
        answer = await call_once(lambda: call, peer=peer)
    except PeerUnavailable as error:
        untrusted = await why_untrusted(channel, peer)
        raise untrusted or PeerUnavailable(f"{error.message}; is it started, is the address right?") from None
    end_s = time.time()
    told = {str(key): str(value) for key, value in await call.trailing_metadata() or ()}
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise PeerUnavailable(f"{peer} is {status}: wait, or see its log", peer=peer)
    seen = f"serves, FedNano {told.get(VERSION_KEY, 'of an unknown version')}, {1000 * (end_s - start_s):.0f} ms away"
    return [ok(name, seen), clock_row(f"{name}, clock", told, start_s, end_s)]


def clock_row(name: str, told: Mapping[str, str], start_s: float, end_s: float) -> Row:
    """How far this machine's clock is from the peer's, which looked at it some time between the two."""
    text = told.get(CLOCK_KEY, "")
    if not text.isdecimal():
        return warn(name, "the peer does not say", "compare the clocks yourself: `date -u` on both machines")
    skew_s = (start_s + end_s) / 2 - int(text) / 1000
    found = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} the peer's, to {(end_s - start_s) / 2:.1f} s"
    if abs(skew_s) - (end_s - start_s) / 2 > MOST_SKEW_S:
        return fail(name, found, "set the clocks right, with NTP: certificates and tokens are judged by them")
    return ok(name, found)


def _model(name: str, model: Model, settings: ClientSettings, model_digest: str) -> Row:
    found = f"{model.digest[:12]}, hidden size {model.hidden_size}"
    if not model_digest:
        return warn(name, f"{found}; not compared", "set --model right first")
    try:
        check_digest(model.digest, model_digest, "the server")
        check_encoding(model, settings.wire_encoding, "the server")
    except WireError as error:
        return fail(name, error.message)
    return ok(name, f"{found}: the edge half's")
