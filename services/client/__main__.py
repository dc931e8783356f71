"""The edge client's process. Exit status: 0 when the run has ended, 2 for wrong settings or files, 1 otherwise."""

import asyncio
import signal
import sys
from contextlib import suppress

import torch

from fednano.config import read_settings
from fednano.errors import ExamplesInvalid, FednanoError, ModelInvalid, SettingsInvalid
from fednano.metrics import RpcMetrics, new_registry, serve_metrics
from fednano.rpc.gate import gate_terms
from fednano.rpc.server import serving, until_signalled
from fednano.telemetry import configure_logging, get_logger
from fednano.tracing import tracing
from fednano.wire.heap import keep_freed_memory
from services.client.agent import Agent
from services.client.metrics import ClientMetrics
from services.client.settings import ClientSettings

log = get_logger("client")


def main() -> int:
    keep_freed_memory()
    try:
        settings = read_settings(ClientSettings)
        configure_logging(f"client {settings.client_id}", level=settings.log_level)
        torch.set_num_threads(settings.threads)
        with tracing("fednano.client", settings.trace_endpoint):
            asyncio.run(_live(settings))
    except FednanoError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2 if isinstance(error, SettingsInvalid | ModelInvalid | ExamplesInvalid) else 1
    return 0


async def _live(settings: ClientSettings) -> None:
    """Until the run has ended or a signal comes. The port serves health only."""
    # First of all: who sees the ready file may send a signal at once.
    signalled = asyncio.create_task(until_signalled())
    log.info("starting", settings=settings.shown())
    registry = new_registry()
    with serve_metrics(registry, settings.metrics_listen) as metrics_address, gate_terms(settings) as gate:
        async with serving(
            {},
            settings.listen,
            settings.security,
            grace_s=settings.shutdown_grace_s,
            ready_file=settings.ready_file,
            metrics=RpcMetrics(registry),
            metrics_address=metrics_address,
            gate=gate,
        ):
            await _work(Agent(settings, ClientMetrics(registry)), signalled)


async def _work(agent: Agent, signalled: asyncio.Task[signal.Signals]) -> None:
    life = asyncio.create_task(agent.run())
    await asyncio.wait({life, signalled}, return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if not life.done():
        agent.abandon()
        life.cancel()
    with suppress(asyncio.CancelledError):
        await life


if __name__ == "__main__":
    sys.exit(main())
