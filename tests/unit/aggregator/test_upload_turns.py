"""Who may send when one client uploads twice at the same time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fednano.errors import NoProgress, ServerBusy
from fednano.names import ClientName, RoundName
from fednano.v1 import aggregator_service_pb2 as pb
from services.aggregator import upload_turns
from services.aggregator.upload_turns import UploadTurns

ROUND = RoundName(run="demo", number=1)
A, B = (ClientName(run="demo", client=client) for client in "ab")


async def silence() -> AsyncIterator[pb.UploadUpdateRequest]:
    await asyncio.sleep(60)
    yield pb.UploadUpdateRequest()


async def one_upload(turns: UploadTurns, client: ClientName, log: list[str], name: str) -> None:
    async with turns.take(ROUND, client) as turn:
        log.append(f"{name} begins")
        try:
            await turn.next_frame(silence())
        finally:
            await asyncio.sleep(0.01)
            log.append(f"{name} ends")


async def stopped(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_newest_upload_wins_after_all_older_ones_have_ended() -> None:
    turns, log = UploadTurns(), list[str]()
    tasks = []
    for name in ("first", "second", "third"):
        tasks.append(asyncio.create_task(one_upload(turns, A, log, name)))
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    for loser in tasks[:2]:
        with pytest.raises(ServerBusy, match="newer upload"):
            await loser
    assert not tasks[2].done()
    assert log[0] == "first begins"
    assert log.index("first ends") < log.index("second begins") < log.index("second ends") < log.index("third begins")
    await stopped(tasks[2])


async def test_clients_do_not_disturb_each_other() -> None:
    turns, log = UploadTurns(), list[str]()
    tasks = [asyncio.create_task(one_upload(turns, client, log, client.client)) for client in (A, B)]
    await asyncio.sleep(0.05)
    assert log == ["a begins", "b begins"]
    for task in tasks:
        await stopped(task)
    assert not turns._turns


async def test_silence_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_turns, "FRAME_TIMEOUT_S", 0.02)
    with pytest.raises(NoProgress, match="no frame"):
        await one_upload(UploadTurns(), A, [], "silent")


async def test_an_upload_that_does_not_end_keeps_the_newer_one_waiting_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_turns, "TURN_TIMEOUT_S", 0.02)
    turns = UploadTurns()
    async with turns.take(ROUND, A):
        with pytest.raises(ServerBusy, match="still being recorded"):
            await one_upload(turns, A, [], "newer")


async def test_only_so_many_uploads_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_turns, "MAX_READ_AT_ONCE", 1)
    monkeypatch.setattr(upload_turns, "TURN_TIMEOUT_S", 0.02)
    turns = UploadTurns()
    async with turns.room():
        with pytest.raises(ServerBusy, match="already"):
            async with turns.room():
                pass
    async with turns.room():
        pass
