"""Kills of real clients, of the LLM server and of the aggregator while the nano model is trained."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chaos_run import assert_undisturbed
from real_run import SHAPE, RealRun, real_run

from fednano.data.icon_federation import write_icon_federation
from fednano.v1.run_pb2 import Round
from services.client.checkpoint import FILE as CHECKPOINT
from services.client.finished_update import FILE as FINISHED

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
SLOW_BYTES_S = 200_000.0


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    write_icon_federation(folder, client_count=2, alpha=1.0, seed=0, train_count=64, val_count=2, test_count=12)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> str:
    async def digest() -> str:
        async with real_run(tmp_path_factory.mktemp("undisturbed"), examples) as run:
            found = await run.finish()
        assert_undisturbed(found, found.digest, SHAPE)
        return found.digest

    return asyncio.run(digest())


@pytest.fixture
async def run(tmp_path: Path, examples: Path) -> AsyncIterator[RealRun]:
    async with real_run(tmp_path, examples) as run:
        yield run


async def test_a_client_killed_within_an_epoch_goes_on_from_its_checkpoint(run: RealRun, undisturbed: str) -> None:
    client = run.clients[0]
    await run.until(lambda: CHECKPOINT in run.kept(1))
    client.kill()
    assert FINISHED not in run.kept(1)
    client.launch()
    assert_undisturbed(await run.finish(), undisturbed, SHAPE)
    assert '"event": "resumed"' in client.log


async def test_a_client_killed_during_its_upload_sends_the_rest_and_trains_nothing_again(
    run: RealRun, undisturbed: str
) -> None:
    await run.until(lambda: CHECKPOINT in run.kept(1) or CHECKPOINT in run.kept(2))
    run.to_aggregator.rate_bytes_s = SLOW_BYTES_S
    await run.until(lambda: run.sight is not None and run.sight.incoming_bytes > 0)
    client = next(client for client in run.clients if client.name in run.uploading)
    client.kill()
    run.to_aggregator.rate_bytes_s = 0.0
    client.launch()
    assert_undisturbed(await run.finish(), undisturbed, SHAPE)
    assert '"event": "update_found"' in client.log
    assert '"event": "upload_resumed"' in client.log


async def test_after_a_kill_of_the_llm_server_the_step_is_done_again(run: RealRun, undisturbed: str) -> None:
    await run.until(lambda: CHECKPOINT in run.kept(1) and CHECKPOINT in run.kept(2))
    await kill_server(run)
    await run.until(lambda: run.sight is not None and run.sight.number == SHAPE.rounds)
    await run.until(lambda: run.sight is not None and run.sight.round_state == Round.STATE_EVALUATING)
    await kill_server(run)
    assert_undisturbed(await run.finish(), undisturbed, SHAPE)
    assert any('"event": "session_lost"' in client.log for client in run.clients)


async def test_a_half_open_connection_to_the_llm_server_is_noticed(run: RealRun, undisturbed: str) -> None:
    await run.until(lambda: CHECKPOINT in run.kept(1) and CHECKPOINT in run.kept(2))
    run.to_server.freeze()
    assert_undisturbed(await run.finish(), undisturbed, SHAPE)
    assert any('"event": "session_lost"' in client.log for client in run.clients)


async def test_kills_of_everyone_in_one_run_change_nothing(run: RealRun, undisturbed: str) -> None:
    await run.until(lambda: CHECKPOINT in run.kept(1))
    for part in (run.aggregator, run.clients[0], run.server, run.clients[1]):
        part.kill()
        part.launch()
    await run.until(lambda: run.sight is not None and run.sight.number == SHAPE.rounds)
    for part in (run.clients[1], run.server, run.aggregator):
        part.kill()
        part.launch()
    assert_undisturbed(await run.finish(), undisturbed, SHAPE)


async def kill_server(run: RealRun) -> None:
    run.server.kill()
    await run.server.start()
