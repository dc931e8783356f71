"""Twenty kills of one run, of the aggregator and of clients, at instants that a seeded generator draws."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos_run import RUN_TIMEOUT_S, Watch, assert_undisturbed, chaos_config, create, outcome
from paced_client import PacedClient
from service import Service, killed_at_the_end
from sight import Shape, look

SHAPE = Shape(clients=3, rounds=6)
KILLS = 20
LOOK_S = 0.01
PACED_CLIENT = Path(__file__).with_name("paced_client.py")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Comes ``delay_s`` after the run's event number ``event``: by progress, whatever the machine's speed."""

    event: int
    delay_s: float
    victim: int


def drawn_kills(seed: int, last_event: int) -> list[Kill]:
    """Victim 0 is the aggregator; it is hit about every second time."""
    draw = random.Random(seed)
    events = sorted(draw.randrange(1, last_event) for _ in range(KILLS))
    victims = [0] * SHAPE.clients + list(range(1, SHAPE.clients + 1))
    return [Kill(event=event, delay_s=draw.uniform(0, 0.4), victim=draw.choice(victims)) for event in events]


async def federate(folder: Path, kills: Sequence[Kill]) -> tuple[str, int]:
    """The final adapter's digest, and how many events there were."""
    aggregator = Service.aggregator(folder)
    async with asyncio.timeout(2 * RUN_TIMEOUT_S), killed_at_the_end(aggregator):
        address = await aggregator.start()
        await create(address, chaos_config(SHAPE))
        watch = Watch(address=address)
        clients = [PacedClient(client_id=f"c{n}", address=address, folder=folder) for n in range(SHAPE.clients)]
        processes = [_process_of(client) for client in clients]
        async with killed_at_the_end(*processes), asyncio.TaskGroup() as group:
            group.create_task(watch.follow())
            for process in processes:
                process.launch()
            for kill in kills:
                await _kill(kill, [aggregator, *processes], folder / "state")
            for process in processes:
                group.create_task(_ended_well(process))
        found = await outcome(address, watch, clients)
        assert_undisturbed(found, found.digest, SHAPE)
        return found.digest, len(found.sequences)


def _process_of(client: PacedClient) -> Service:
    words = [str(PACED_CLIENT), client.client_id, client.address, str(client.folder)]
    return Service(client.client_id, words, client.folder, listens=False)


async def _kill(kill: Kill, victims: Sequence[Service], state: Path) -> None:
    """The victim is started again at once, and may be hit again while it starts."""
    while (sight := look(state)) is None or sight.event_count < kill.event:
        assert sight is None or not sight.is_ended, "the run ended before all kills were done"
        await asyncio.sleep(LOOK_S)
    await asyncio.sleep(kill.delay_s)
    victims[kill.victim].kill()
    victims[kill.victim].launch()


async def _ended_well(process: Service) -> None:
    assert await process.ended() == 0, process.last_words


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_run_with_twenty_random_kills_ends_with_the_same_adapter(tmp_path: Path, seed: int) -> None:
    digest, events = await federate(tmp_path / "undisturbed", ())
    # Kills only add events, so that all of these come before the run's end.
    kills = drawn_kills(seed, events - 5)
    assert (await federate(tmp_path / "disturbed", kills))[0] == digest
