"""The aggregator's process. Exit status: 0 after a signal, 2 for wrong settings, 1 otherwise."""

import asyncio
import sys

from fednano.config import read_settings
from fednano.errors import FednanoError, SettingsInvalid
from fednano.metrics import RpcMetrics, new_registry, serve_metrics
from fednano.rpc.gate import gate_terms
from fednano.rpc.server import serving, until_signalled
from fednano.telemetry import configure_logging, get_logger
from fednano.tracing import tracing
from services.aggregator.bearer_tokens import open_verifier
from services.aggregator.federation import Federation, open_federation
from services.aggregator.heap import share_heaps
from services.aggregator.intake import drop_stale_drafts
from services.aggregator.metrics import RunCollector
from services.aggregator.services import aggregator_services
from services.aggregator.settings import AggregatorSettings

log = get_logger("aggregator")


def main() -> int:
    share_heaps()
    try:
        settings = read_settings(AggregatorSettings)
        configure_logging("aggregator", level=settings.log_level)
        with tracing("fednano.aggregator", settings.trace_endpoint):
            asyncio.run(_serve(settings))
    except FednanoError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2 if isinstance(error, SettingsInvalid) else 1
    return 0


async def _serve(settings: AggregatorSettings) -> None:
    federation, registry = open_federation(settings), new_registry()
    log.info("starting", settings=settings.shown())
    try:
        services = aggregator_services(federation)
        registry.register(RunCollector(federation.store, settings.state))
        drop_stale_drafts(federation)
        federation.drive_unended()
        with (
            serve_metrics(registry, settings.metrics_listen) as metrics_address,
            gate_terms(settings, open_verifier(settings)) as gate,
        ):
            async with serving(
                services,
                settings.listen,
                settings.security,
                grace_s=settings.shutdown_grace_s,
                ready_file=settings.ready_file,
                metrics=RpcMetrics(registry),
                metrics_address=metrics_address,
                gate=gate,
                ops_listen=settings.ops_listen,
            ):
                await _until_signalled_or_damaged(federation)
    finally:
        await federation.stop()


async def _until_signalled_or_damaged(federation: Federation) -> None:
    """Raises StoreRefused where the database turns out to be damaged: nothing good comes of going on."""
    waits = [asyncio.create_task(until_signalled()), asyncio.create_task(federation.until_damaged())]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in done:
            await wait
    finally:
        for wait in waits:
            wait.cancel()


if __name__ == "__main__":
    sys.exit(main())
