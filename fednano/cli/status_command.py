"""`fednano status`: whether the services that are named serve, in which version, and which runs are under way."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

import grpc.aio
import typer
from grpc_health.v1 import health_pb2

from fednano.cli.commands import Command, check_address
from fednano.cli.exits import EXIT_FAILED
from fednano.cli.follow import ENDED
from fednano.cli.output import last, words
from fednano.errors import SettingsInvalid
from fednano.rpc.channels import HEALTH_CHECK, open_channel
from fednano.rpc.interceptor import VERSION_KEY
from fednano.rpc.peer_channel import why_untrusted
from fednano.v1 import run_pb2

SERVICES = {
    "aggregator": ("fednano.v1.AggregatorService", "fednano.v1.RunService"),
    "server": ("fednano.v1.SplitService",),
}
# Most runs whose state is asked for.
RUN_LIMIT = 100


@dataclass(frozen=True, kw_only=True)
class Health:
    """``status`` is the health's word, or UNREACHABLE; ``why`` is gRPC's, where there was no answer."""

    peer: str
    address: str
    service: str
    status: str
    version: str = ""
    why: str = ""


async def status(
    command: Command,
    server: Annotated[str, typer.Option(envvar="FEDNANO_SERVER", help="host:port of an LLM server.")] = "",
) -> None:
    """Asks each service that is named whether it serves; exit code 1 where one does not."""
    peers = {"aggregator": command.aggregator, "server": server}
    if not any(peers.values()):
        raise SettingsInvalid("give --aggregator HOST:PORT, --server HOST:PORT, or both")
    asked = [
        _health(command, peer, peers[peer], service) for peer in peers if peers[peer] for service in SERVICES[peer]
    ]
    found = await asyncio.gather(*asked)
    serves = all(one.status == "SERVING" for one in found)
    aggregator_serves = command.aggregator and all(one.status == "SERVING" for one in found if one.peer == "aggregator")
    runs = await _runs_under_way(command) if aggregator_serves else []
    _show(command, found, runs)
    if not serves:
        raise typer.Exit(EXIT_FAILED)


async def _health(command: Command, peer: str, address: str, service: str) -> Health:
    check_address(address, f"--{peer}")
    opened = command.aggregator_channel() if peer == "aggregator" else open_channel(address, command.security)
    async with opened as channel:
        check = channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        call = check(health_pb2.HealthCheckRequest(service=service), timeout=command.patience_s())
        try:
            answer = await call
            facts = dict((await call.trailing_metadata()) or ())
        except grpc.aio.AioRpcError as error:
            unknown = error.code() is grpc.StatusCode.NOT_FOUND
            said = "SERVICE_UNKNOWN" if unknown else "UNREACHABLE"
            untrusted = await why_untrusted(channel, f"{peer} at {address}")
            why = untrusted.message if untrusted else f"{error.code().name} {error.details()}"
            return Health(peer=peer, address=address, service=service, status=said, why=why)
    said = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    version = str(facts.get(VERSION_KEY, ""))
    return Health(peer=peer, address=address, service=service, status=said, version=version)


async def _runs_under_way(command: Command) -> list[run_pb2.Run]:
    async with command.operator() as operator:
        return [run for run in await operator.runs(RUN_LIMIT) if run.state not in ENDED]


def _show(command: Command, found: list[Health], runs: list[run_pb2.Run]) -> None:
    if command.as_json:
        facts = {"services": [_facts(one) for one in found], "runs": [_run_facts(run) for run in runs]}
        command.output.facts(facts, [])
        return
    header = ("service", "address", "health", "version", "why")
    rows = [(one.service, one.address, one.status, one.version or "-", one.why or "-") for one in found]
    command.output.table(header, rows)
    if runs:
        typer.echo()
        under_way = [tuple(value or "-" for value in _run_facts(run).values()) for run in runs]
        command.output.table(("run under way", "state", "round", "waiting for"), under_way)


def _facts(health: Health) -> dict[str, str]:
    return {
        "service": health.service,
        "peer": health.peer,
        "address": health.address,
        "status": health.status,
        "version": health.version,
        "why": health.why,
    }


def _run_facts(run: run_pb2.Run) -> dict[str, str]:
    return {
        "name": run.name,
        "state": words(run_pb2.Run.State.Name(run.state)),
        "round": last(run.current_round),
        "waitingFor": run.waiting_for,
    }
