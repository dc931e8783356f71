"""Connections that stay open and carry nothing: they are noticed, and the run goes on over new ones."""

import asyncio
import signal
from pathlib import Path

import pytest
from chaos_run import (
    RUN_TIMEOUT_S,
    SHAPE,
    Outcome,
    Watch,
    assert_undisturbed,
    chaos_config,
    create,
    outcome,
)
from killing import meet
from paced_client import PacedClient
from proxy import Proxy
from service import Service, killed_at_the_end
from sight import Phase

pytestmark = pytest.mark.timeout(300)


async def federate_through_a_proxy(folder: Path, phase: Phase, *, come_back: bool) -> Outcome:
    """All clients' connections freeze in ``phase``; with ``come_back`` the clients are started anew right after."""
    aggregator = Service.aggregator(folder)
    async with killed_at_the_end(aggregator), asyncio.timeout(RUN_TIMEOUT_S):
        address = await aggregator.start()
        await create(address, chaos_config(SHAPE))
        watch = Watch(address=address)
        async with Proxy(address) as proxy, asyncio.TaskGroup() as group:
            group.create_task(watch.follow())
            clients = [
                PacedClient(client_id=f"c{number}", address=proxy.address, folder=folder)
                for number in range(SHAPE.clients)
            ]
            lives = [group.create_task(client.live()) for client in clients]
            await meet(phase, aggregator, folder / "state", SHAPE)
            proxy.freeze()
            aggregator.signal(signal.SIGCONT)
            if come_back:
                for life in lives:
                    life.cancel()
                for client in clients:
                    group.create_task(client.live())
        assert proxy.connection_count >= 2 * SHAPE.clients
        return await outcome(address, watch, clients)


async def test_a_client_that_comes_back_takes_over_from_its_own_half_open_upload(
    tmp_path: Path, undisturbed_digest: str
) -> None:
    found = await federate_through_a_proxy(tmp_path, Phase.UPLOADING, come_back=True)
    assert_undisturbed(found, undisturbed_digest)


@pytest.mark.chaos
@pytest.mark.parametrize("phase", [Phase.UPLOADING, Phase.PARTLY_UPDATED, Phase.EVALUATING])
async def test_clients_notice_that_their_connections_are_half_open(
    tmp_path: Path, undisturbed_digest: str, phase: Phase
) -> None:
    """Within keepalive's 50 seconds; a poll ends by its own deadline before."""
    found = await federate_through_a_proxy(tmp_path, phase, come_back=False)
    assert_undisturbed(found, undisturbed_digest)
