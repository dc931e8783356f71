"""A disk that is full for a while, at the phases that write: everybody waits, and the run goes on when it has space."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from chaos_run import assert_undisturbed, run_federation
from service import PATIENCE_S, Service
from sight import Phase, look

pytestmark = pytest.mark.timeout(300)
# How long a disk stays full once it was noticed.
FULL_S = 1.0
# How long an aggregator is watched that starts on a full disk.
START_S = 5.0


@asynccontextmanager
async def full(disk: Path) -> AsyncIterator[None]:
    """All that was free is taken while the block runs."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    try:
        yield
    finally:
        ballast.unlink()


async def fill(aggregator: Service, state: Path) -> None:
    """Until the aggregator has said so; nobody else may fail for it."""
    told = aggregator.log.count("no space")
    async with full(state.parent), asyncio.timeout(PATIENCE_S):
        aggregator.signal(signal.SIGCONT)
        while aggregator.log.count("no space") == told:
            await asyncio.sleep(0.05)
        await asyncio.sleep(FULL_S)
        assert aggregator.is_running, aggregator.last_words
        sight = look(state)
        assert sight is not None
        assert not sight.is_ended


@pytest.mark.parametrize(
    "phase",
    [
        Phase.UPLOADING,
        *(
            pytest.param(phase, marks=pytest.mark.chaos)
            for phase in (Phase.WAITING, Phase.TRAINING, Phase.BEFORE_MERGE, Phase.MERGING, Phase.EVALUATING)
        ),
    ],
)
async def test_a_run_goes_on_after_its_disk_was_full(
    tmp_path: Path, small_disk: Path, undisturbed_digest: str, phase: Phase
) -> None:
    outcome = await run_federation(tmp_path, (phase,), act=fill, state=small_disk / "state")
    assert_undisturbed(outcome, undisturbed_digest)
    assert phase is not Phase.UPLOADING or ("failed", "StorageFull") in outcome.journal


@pytest.mark.chaos
@pytest.mark.parametrize("phase", [Phase.UPLOADING, Phase.MERGING])
async def test_an_aggregator_killed_on_a_full_disk_goes_on_once_there_is_space(
    tmp_path: Path, small_disk: Path, undisturbed_digest: str, phase: Phase
) -> None:
    """On the full disk itself it either serves, or says why it does not."""

    async def kill_when_full(aggregator: Service, state: Path) -> None:
        async with full(state.parent):
            aggregator.kill()
            aggregator.launch()
            await asyncio.sleep(START_S)
            assert aggregator.is_running or "no space" in aggregator.log, aggregator.last_words
        aggregator.kill()
        await aggregator.start()

    outcome = await run_federation(tmp_path, (phase,), act=kill_when_full, state=small_disk / "state")
    assert_undisturbed(outcome, undisturbed_digest)
