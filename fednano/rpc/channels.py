"""Opening a channel to a peer, and waiting until the peer says it serves."""

import asyncio
import random
import time

import grpc.aio
from grpc_health.v1 import health_pb2

from fednano.config import Security
from fednano.errors import PeerUnavailable, Unauthenticated, WireError
from fednano.rpc.peer_channel import PeerChannel, refuse_revoked, why_untrusted
from fednano.rpc.retry import call_once
from fednano.rpc.server_files import own_files, revocation_list

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Of the pings that gRPC sends for reasons of its own, and a keepalive that comes after one: 60 s by default.
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A channel of our own for each peer: no subchannel shared with a stranger's back-off.
    ("grpc.use_local_subchannel_pool", 1),
]
# For a name that has several addresses: the next call goes to the next of those that answer, and where one is lost,
# the name is looked up again, at most this often.
NAME_OPTIONS = [
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
]


def open_channel(address: str, security: Security) -> PeerChannel:
    """A channel to ``address``; connecting happens on the first call, and again by itself whenever it is lost.

    An address such as ``dns:///name:port`` is all the addresses that the name has. Raises SettingsInvalid where the
    certificate files are wrong; those that are renewed later are taken for the calls that follow.
    """
    # Only to see at once whether it can be read.
    revocation_list(security)
    options = CHANNEL_OPTIONS + (NAME_OPTIONS if address.startswith("dns:") else [])
    return PeerChannel(address, security, options, own_files(security))


async def wait_until_serving(channel: grpc.aio.Channel, service: str, peer: str, timeout_s: float) -> None:
    """Returns once the peer's health is SERVING for ``service``.

    Raises PeerUnavailable after ``timeout_s``, with the reason that TLS gave where it was that, and Unauthenticated at
    once where the peer wants nobody with this certificate, or PeerUntrusted where the peer's own is revoked.
    """
    check = channel.unary_unary(
        HEALTH_CHECK,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    request = health_pb2.HealthCheckRequest(service=service)
    await refuse_revoked(channel, peer)
    deadline = time.monotonic() + timeout_s
    last, pause_s = "no answer", FIRST_PAUSE_S
    while time.monotonic() < deadline:
        try:
            answer = await call_once(lambda: check(request, timeout=min(5.0, timeout_s)), peer=peer)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            last = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        except Unauthenticated:
            raise
        except WireError as error:
            last = error.message.removeprefix(f"{peer}: ")
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    untrusted = await why_untrusted(channel, peer)
    if untrusted is not None:
        raise PeerUnavailable(untrusted.message, **untrusted.facts)
    raise PeerUnavailable(
        f"{peer} does not serve {service} after {timeout_s:g} s ({last}); is it started, is the address right?",
        peer=peer,
    )
