"""Two LLM servers of one model, one of them killed in the middle of a step: the other one does the step again.

Real processes; the run's adapter has the bits of a run that nothing disturbed.
"""

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from name_server import name_server
from training_processes import EXAMPLES, STEPS, Federation, kill, until

from fednano.cli.processes import Part, Processes, free_address
from fednano.data.icon_federation import write_icon_federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(450)]
# Longer than a step takes, from its begin to its checkpoint.
STILL_S = 0.5


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("replicas")
    icons = folder / "icons"
    write_icon_federation(icons, client_count=1, alpha=1.0, seed=0, train_count=EXAMPLES, val_count=1, test_count=2)
    server_address, aggregator_address = free_address(), free_address()
    with Processes(folder, print) as processes:
        flags = ["--state", str(folder / "state"), "--listen", aggregator_address, "--lease-s", "20"]
        aggregator = processes.start("aggregator", "services.aggregator", flags)
        server = start_server(processes, server_address)
        yield Federation(
            folder=folder,
            processes=processes,
            server=server,
            aggregator=aggregator,
            server_address=server_address,
            aggregator_address=aggregator_address,
        )


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> str:
    async def digest() -> str:
        await federation.create("undisturbed")
        client = federation.start_client("undisturbed")
        found = await federation.adapter_of("undisturbed")
        assert client.process.wait(20) == 0
        assert "session_lost" not in client.log.read_text()
        return found

    return asyncio.run(digest())


def start_server(processes: Processes, address: str) -> Part:
    return processes.start(f"server-{address}", "services.server", ["--model", "nano", "--listen", address])


async def test_a_replica_killed_in_the_middle_of_a_step_changes_no_bit(
    federation: Federation, undisturbed: str
) -> None:
    addresses = [free_address(), free_address()]
    replicas = [start_server(federation.processes, address) for address in addresses]
    await disturbed_run(replace(federation, server_address=", ".join(addresses)), "listed", replicas, undisturbed)


async def test_a_name_with_several_addresses_is_as_good_as_a_list(federation: Federation, undisturbed: str) -> None:
    port = free_address().rpartition(":")[2]
    hosts = ["127.0.0.1", "127.0.0.2"]
    replicas = [start_server(federation.processes, f"{host}:{port}") for host in hosts]
    for replica in replicas:
        await federation.processes.ready(replica, 60.0)
    with name_server(hosts) as name_server_address:
        named = f"dns://{name_server_address}/servers.test:{port}"
        await disturbed_run(replace(federation, server_address=named), "named", replicas, undisturbed)


async def disturbed_run(federation: Federation, run_id: str, replicas: Sequence[Part], undisturbed: str) -> None:
    await federation.create(run_id)
    client = federation.start_client(run_id)
    await until(lambda: federation.step_saved(run_id) >= 5)
    used, spare = sorted(replicas, key=sessions_of, reverse=True)
    assert (sessions_of(used), sessions_of(spare)) == (1, 0)
    step = await stop_in_a_step(federation, run_id, used)
    assert step < STEPS
    # Its process stays dead: nobody is to miss it.
    federation.processes.parts.remove(used)
    kill(used)
    assert await federation.adapter_of(run_id) == undisturbed
    assert client.process.wait(20) == 0
    assert "session_lost" in client.log.read_text()
    assert sessions_of(spare) >= 1


async def stop_in_a_step(federation: Federation, run_id: str, server: Part) -> int:
    """The steps done, once the client waits for an answer that a stopped server does not give."""
    os.kill(server.process.pid, signal.SIGSTOP)
    step = -1
    while step != (step := federation.step_saved(run_id)):
        await asyncio.sleep(STILL_S)
    return step


def sessions_of(server: Part) -> int:
    return Path(server.log).read_text().count('"session_opened"')
