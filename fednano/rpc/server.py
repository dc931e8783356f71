"""Starting and stopping a gRPC server the same way in every service: health, reflection, errors, keepalive, grace."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from fednano.config import Security
from fednano.errors import PeerUnavailable, SettingsInvalid
from fednano.metrics import RpcMetrics
from fednano.rpc.gate import Gate, GateTerms
from fednano.rpc.interceptor import CallInterceptor
from fednano.rpc.listening import parse_listen
from fednano.rpc.server_files import own_files, revocation_list, server_credentials
from fednano.rpc.traced import TraceInterceptor
from fednano.security.pem_files import PemFiles
from fednano.security.watch import CertificateWatch
from fednano.telemetry import get_logger

log = get_logger("rpc")

SERVER_OPTIONS = [
    # Clients ping every 30 s while a call is open, also when they compute for minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A peer that vanished without a word, such as a watcher, is given up.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # It is this one that counts where a ping of gRPC's own came first: 60 s by default.
    ("grpc.http2.ping_timeout_ms", 20_000),
    # More calls on one connection wait at the caller's side.
    ("grpc.max_concurrent_streams", 4096),
    # Two services on one port would answer each other's calls.
    ("grpc.so_reuseport", 0),
]

AddServicer = Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that is serving: where, and the health it reports."""

    server: grpc.aio.Server
    address: str
    # The second one, empty where there is none.
    ops_address: str
    health: health_aio.HealthServicer


@asynccontextmanager
async def serving(
    services: Mapping[str, AddServicer],
    listen: str,
    security: Security,
    *,
    grace_s: float,
    ready_file: Path | None = None,
    metrics: RpcMetrics | None = None,
    metrics_address: str = "",
    gate: GateTerms | None = None,
    ops_listen: str = "",
) -> AsyncIterator[RunningServer]:
    """Serves while the block runs; afterwards turns health to NOT_SERVING and gives open calls ``grace_s`` seconds.

    ``services`` maps full names, such as "fednano.v1.SplitService", to what adds their servicer. ``metrics`` counts the
    calls; where they are served, ``metrics_address`` is logged beside the address. ``gate`` says how strictly callers
    are judged; without it by their certificates alone. ``ops_listen`` is a second address for callers that have none.
    """
    files = own_files(security)
    watch = CertificateWatch(revocation_list(security), files)
    metrics = metrics or RpcMetrics(CollectorRegistry())
    if files is not None:
        metrics.show_certificate_end(files.end_s)
    keeper = CallInterceptor(Gate(gate or GateTerms(security=security), watch), metrics)
    server = grpc.aio.server(interceptors=[keeper, TraceInterceptor()], options=SERVER_OPTIONS)
    for add in services.values():
        add(server)
    health, address = await _add_health(server, list(services)), _bind(server, listen, files)
    ops_address = _bind(server, ops_listen, files, asks_certificate=False) if ops_listen else ""
    await server.start()
    said = {"services": list(services), "plaintext": files is None, "version": version("fednano")}
    try:
        _write_ready_file(ready_file, address)
        log.info("serving", address=address, ops_address=ops_address, metrics=metrics_address, **said)
        async with watch.looking():
            yield RunningServer(server=server, address=address, ops_address=ops_address, health=health)
    finally:
        await health.enter_graceful_shutdown()
        await server.stop(grace_s)
        log.info("stopped", address=address)


async def until_signalled() -> signal.Signals:
    """Waits for SIGTERM or SIGINT; the one wait without a deadline, for it is the service's life."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[signal.Signals] = loop.create_future()

    def note(number: signal.Signals) -> None:
        if not received.done():
            received.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note, number)
    number = await received
    log.info("stopping", signal=number.name)
    return number


async def _add_health(server: grpc.aio.Server, services: Sequence[str]) -> health_aio.HealthServicer:
    health = health_aio.HealthServicer()
    for name in ["", *services]:
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    shown = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(shown, server)
    return health


def _bind(server: grpc.aio.Server, listen: str, files: PemFiles | None, *, asks_certificate: bool = True) -> str:
    host, _ = parse_listen(listen, "--listen" if asks_certificate else "--ops-listen")
    try:
        if files is None:
            log.warning(
                "plaintext", listen=listen, why="--insecure was given: nothing is encrypted, nobody is authenticated"
            )
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, server_credentials(files, asks_certificate=asks_certificate))
    except RuntimeError as error:
        raise PeerUnavailable(f"cannot listen on {listen}: is another process there? ({error})", peer=listen) from None
    return f"{host}:{port}"


def _write_ready_file(path: Path | None, address: str) -> None:
    """Whole or not at all, for somebody waits for it."""
    if path is None:
        return
    draft = path.with_suffix(path.suffix + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(address)
        draft.replace(path)
    except OSError as error:
        raise SettingsInvalid(f"--ready-file: cannot write {path}: {error.strerror}") from None
