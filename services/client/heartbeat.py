"""Telling the aggregator, again and again, that this client is alive; and hearing from it when work is in vain."""

import asyncio

from fednano.errors import ClientEvicted, WireError
from fednano.names import ClientName
from fednano.telemetry import get_logger
from fednano.v1 import aggregator_service_pb2 as pb
from services.client.aggregator_link import AggregatorLink
from services.client.progress import Progress

log = get_logger("client.heartbeat")
LEAST_INTERVAL_S = 0.1


async def send_heartbeats(link: AggregatorLink, client: ClientName, progress: Progress, interval_s: float) -> None:
    """Goes on until it is cancelled. A lost aggregator is the poll's matter: here it is only logged."""
    while True:
        await asyncio.sleep(max(interval_s, LEAST_INTERVAL_S))
        round_name = progress.round
        request = pb.SendHeartbeatRequest(client=str(client), round=round_name, step=progress.step)
        try:
            directive = await link.heartbeat(request)
        except ClientEvicted as error:
            # The next poll says so too, and ends the client: work until then would be in vain.
            log.warning("told_to_stop", round=round_name, why=error.message)
            progress.abandoned.set()
            continue
        except WireError as error:
            log.warning("heartbeat_failed", error=type(error).__name__, why=error.message)
            continue
        if directive in (pb.DIRECTIVE_ABANDON_ROUND, pb.DIRECTIVE_LEAVE) and progress.round == round_name:
            log.info("told_to_stop", round=round_name, directive=pb.Directive.Name(directive))
            progress.abandoned.set()
