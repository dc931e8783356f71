"""A client, or the LLM server, that is killed in the middle of an epoch changes no bit of the run's adapter.

Real processes; one client a run, so that the merged adapter is that client's.
"""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from training_processes import EXAMPLES, STEPS, Federation, kill, until

from fednano.cli.processes import Processes, free_address
from fednano.data.icon_federation import write_icon_federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(450)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("resume")
    write_icon_federation(
        folder / "icons", client_count=1, alpha=1.0, seed=0, train_count=EXAMPLES, val_count=1, test_count=2
    )
    server_address, aggregator_address = free_address(), free_address()
    with Processes(folder, print) as processes:
        flags = ["--state", str(folder / "state"), "--listen", aggregator_address, "--lease-s", "20"]
        aggregator = processes.start("aggregator", "services.aggregator", flags)
        server = processes.start("server", "services.server", ["--model", "nano", "--listen", server_address])
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
        return found

    return asyncio.run(digest())


async def test_a_client_killed_in_the_middle_of_an_epoch_goes_on_to_the_same_bits(
    federation: Federation, undisturbed: str
) -> None:
    await federation.create("client-killed")
    client = federation.start_client("client-killed")
    await until(lambda: federation.step_saved("client-killed") >= 5)
    kill(client)
    step = federation.step_saved("client-killed")
    assert 5 <= step < STEPS
    client.launch()
    assert await federation.adapter_of("client-killed") == undisturbed
    assert client.process.wait(20) == 0
    assert "resumed" in client.log.read_text()
    # The run is over: nothing is left to go on with.
    assert not federation.client_folder("client-killed").exists()


async def test_a_client_killed_while_it_uploads_does_not_train_again(federation: Federation, undisturbed: str) -> None:
    await federation.create("upload-killed")
    client = federation.start_client("upload-killed")
    await until(lambda: federation.step_saved("upload-killed") >= 5)
    # An aggregator that is held takes no update, nor anything else.
    os.kill(federation.aggregator.process.pid, signal.SIGSTOP)
    try:
        await until((federation.client_folder("upload-killed") / "update.json").is_file)
        kill(client)
    finally:
        os.kill(federation.aggregator.process.pid, signal.SIGCONT)
    client.launch()
    assert await federation.adapter_of("upload-killed") == undisturbed
    assert client.process.wait(20) == 0
    assert "update_found" in client.log.read_text()


async def test_an_llm_server_killed_in_the_middle_of_an_epoch_changes_no_bit(
    federation: Federation, undisturbed: str
) -> None:
    await federation.create("server-killed")
    client = federation.start_client("server-killed")
    await until(lambda: federation.step_saved("server-killed") >= 5)
    kill(federation.server)
    await asyncio.sleep(0.5)
    federation.server.launch()
    assert await federation.adapter_of("server-killed") == undisturbed
    assert client.process.wait(20) == 0
    assert "session_lost" in client.log.read_text()
