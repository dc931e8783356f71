"""A channel that shows its newest certificate: where the files have changed, new calls go over a new connection."""

import asyncio
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from fednano.config import Security
from fednano.errors import PeerUntrusted
from fednano.rpc.diagnosis import REVOKED, diagnose
from fednano.security.pem_files import PemFiles
from fednano.telemetry import get_logger

log = get_logger("rpc")
# A connection that keeps failing is looked into, and told of, at most so often.
DOUBT_INTERVAL_S = 30.0

Options = list[tuple[str, Any]]


class PeerChannel(grpc.aio.Channel):
    """gRPC's own channel, or one after the other: what was opened on an older one ends there.

    Looking for changed files costs each call three stats. ``address`` and ``security`` are what it was opened with.
    """

    def __init__(self, address: str, security: Security, options: Options, files: PemFiles | None) -> None:
        """``files`` is None for plaintext."""
        self.address = address
        self.security = security
        self._options = options
        self._files = files
        self._connection = self._connect()
        self._left: list[_Connection] = []
        self._doubt: asyncio.Task[None] | None = None
        self._doubted_s = -math.inf

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, *_: Any, **__: Any
    ) -> Any:
        return _Method(self._method("unary_unary", method, (request_serializer, response_deserializer)))

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, *_: Any, **__: Any
    ) -> Any:
        return _Method(self._method("unary_stream", method, (request_serializer, response_deserializer)))

    def stream_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, *_: Any, **__: Any
    ) -> Any:
        return _Method(self._method("stream_unary", method, (request_serializer, response_deserializer)))

    def stream_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, *_: Any, **__: Any
    ) -> Any:
        return _Method(self._method("stream_stream", method, (request_serializer, response_deserializer)))

    async def close(self, grace: float | None = None) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
        for connection in (*self._left, self._connection):
            await connection.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._newest().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._newest().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._newest().channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _method(self, kind: str, path: str, codec: tuple[Any, Any]) -> "Callable[[], tuple[_Connection, Any]]":
        def newest() -> tuple[_Connection, Any]:
            connection = self._newest()
            return connection, connection.method(kind, path, codec)

        return newest

    def _newest(self) -> "_Connection":
        if self._files is not None and self._files.refresh():
            old, self._connection = self._connection, self._connect()
            self._left = [left for left in self._left if not left.is_closing] + [old]
            old.leave()
        return self._connection

    def _connect(self) -> "_Connection":
        if self._files is None:
            channel = grpc.aio.insecure_channel(self.address, options=self._options)
            return _Connection(channel, self._look_into_failure)
        found = self._files.current
        credentials = grpc.ssl_channel_credentials(found.authority_pem, found.key_pem, found.chain_pem)
        channel = grpc.aio.secure_channel(self.address, credentials, options=self._options)
        return _Connection(channel, self._look_into_failure)

    def _look_into_failure(self) -> None:
        now_s = time.monotonic()
        if now_s - self._doubted_s >= DOUBT_INTERVAL_S:
            self._doubted_s = now_s
            self._doubt = asyncio.get_running_loop().create_task(self._tell_why())

    async def _tell_why(self) -> None:
        found = await asyncio.to_thread(diagnose, self.address, self.security)
        if found is not None:
            log.warning("connection_fails", peer=self.address, fault=found.fault, why=found.words)


async def why_untrusted(channel: grpc.aio.Channel, peer: str, *, only_sure: bool = False) -> PeerUntrusted | None:
    """What of TLS, or of plaintext, keeps a channel of ours from its peer; None where it is something else.

    ``only_sure`` leaves out what a peer that is just being stopped would look like.
    """
    if not isinstance(channel, PeerChannel):
        return None
    found = await asyncio.to_thread(diagnose, channel.address, channel.security)
    if found is None or (only_sure and not found.is_sure):
        return None
    return PeerUntrusted(f"{peer}: {found.words}", peer=peer, fault=found.fault)


async def refuse_revoked(channel: grpc.aio.Channel, peer: str) -> None:
    """Raises PeerUntrusted where the peer shows a certificate that --tls-crl names, if that was given.

    gRPC's Python does not tell callers whom they are connected to, so this looks at a connection of its own: it finds
    a peer whose certificate was revoked, and not one who shows another certificate the next time.
    """
    if not isinstance(channel, PeerChannel) or channel.security.tls_crl is None:
        return
    found = await why_untrusted(channel, peer)
    if found is not None and found.facts["fault"] == REVOKED:
        raise found


class _Method:
    """What a stub calls: each call goes over the connection that is the newest then."""

    def __init__(self, newest: "Callable[[], tuple[_Connection, Any]]") -> None:
        self._newest = newest

    def __call__(
        self,
        *request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        connection, method = self._newest()
        call = method(
            *request,
            timeout=timeout,
            metadata=metadata,
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        connection.count(call)
        return call


class _Connection:
    """One channel of gRPC's, and how many calls are open on it. Once left, it closes after the last one.

    ``note_failure`` is told where a call ends on a channel that cannot connect.
    """

    def __init__(self, channel: grpc.aio.Channel, note_failure: Callable[[], None]) -> None:
        self.channel = channel
        self._note_failure = note_failure
        self._methods: dict[tuple[str, str], Any] = {}
        self._open_calls = 0
        self._is_left = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_closing(self) -> bool:
        return self._closing is not None

    def method(self, kind: str, path: str, codec: tuple[Any, Any]) -> Any:
        key = (kind, path)
        if key not in self._methods:
            self._methods[key] = getattr(self.channel, kind)(path, *codec)
        return self._methods[key]

    def count(self, call: grpc.aio.Call) -> None:
        self._open_calls += 1
        call.add_done_callback(self._note_end)

    def leave(self) -> None:
        self._is_left = True
        self._close_if_idle()

    async def close(self, grace_s: float | None) -> None:
        if self._closing is not None:
            await self._closing
        else:
            await self.channel.close(grace_s)

    def _note_end(self, _: object) -> None:
        self._open_calls -= 1
        if not self._is_left and self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self._note_failure()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._is_left and not self._open_calls and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.channel.close())
