"""An update counts once: broken uploads that go on, doubles, other bytes, and everything that is refused."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from aggregator_inside import aggregator_inside
from aggregator_process import AggregatorProcess, RandomClient, connect
from upload_training import RUN, Training, begin, refused, total

from fednano.errors import (
    AlreadyExists,
    ClientEvicted,
    RoundClosed,
    ServerBusy,
)
from fednano.rpc.status import from_rpc_error
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import artifact_pb2, run_pb2
from fednano.v1 import run_service_pb2 as rpb
from fednano.v1.run_service_pb2_grpc import RunServiceStub


@pytest.fixture
async def training(tmp_path: Path) -> AsyncIterator[Training]:
    async with aggregator_inside(tmp_path / "state") as address, connect(address) as channel:
        yield await begin(channel, tmp_path / "state", tmp_path)


async def test_an_upload_goes_on_from_its_offset_after_the_aggregator_was_killed(tmp_path: Path) -> None:
    process = AggregatorProcess(tmp_path / "state")
    async with connect(await process.start()) as channel:
        training = await begin(channel, tmp_path / "state", tmp_path)
        before = training.artifacts
        header, files = training.a.offer(training.task)
        # Somewhere in the second file.
        size_bytes = header.artifacts[0].size_bytes + 100
        call = await training.a.begin_upload(header, files, size_bytes)
        process.kill()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call
    async with connect(await process.start()) as channel:
        a, b = (RandomClient(channel, client_id, tmp_path) for client_id in "ab")
        a.name, b.name = training.a.name, training.b.name
        assert training.artifacts == before
        assert (await a.poll()).train.round == training.task.round
        assert await a.received(header) == pb.GetUploadResponse(received_bytes=size_bytes)
        # What is sent now is only what was missing.
        assert await a.upload(header, files, start=size_bytes) == 1
        assert await a.received(header) == pb.GetUploadResponse(received_bytes=total(header), accepted=True)
        assert training.incoming == []
        await asyncio.gather(a.work(), b.work())
        assert (await RunServiceStub(channel).GetRun(rpb.GetRunRequest(name=RUN), timeout=10)).run.state == (
            run_pb2.Run.STATE_SUCCEEDED
        )
    assert process.kill(signal.SIGTERM) == 0


async def test_a_broken_upload_leaves_nothing_but_its_part(training: Training) -> None:
    before = training.artifacts
    header, files = training.a.offer(training.task)
    call = await training.a.begin_upload(header, files, 100)
    call.cancel()
    assert (await training.a.received(header)).received_bytes == 100
    assert training.artifacts == before
    part = await training.participant(training.a)
    assert (part.state, part.refusal) == (run_pb2.Participant.STATE_SELECTED, "")
    # An upload may also start anew.
    assert await training.a.upload(header, files) == 1


async def test_an_upload_that_was_whole_but_not_acknowledged_needs_its_header_alone(training: Training) -> None:
    header, files = training.a.offer(training.task)
    call = await training.a.begin_upload(header, files, total(header) - 1)
    call.cancel()
    last = artifact_pb2.ArtifactChunk(offset=total(header) - 1, data=files[-1].read_bytes()[-1:])

    async def frames() -> AsyncIterator[pb.UploadUpdateRequest]:
        yield pb.UploadUpdateRequest(header=header)
        yield pb.UploadUpdateRequest(chunk=last)

    assert (await training.a.stub.UploadUpdate(frames(), timeout=10)).update_count == 1
    assert await training.a.upload(header, files, start=total(header)) == 1


async def test_the_same_bytes_again_change_nothing_and_others_are_refused_with_both_digests(
    training: Training,
) -> None:
    header, files = training.a.offer(training.task)
    assert await training.a.upload(header, files) == 1
    kept, part = training.artifacts, await training.participant(training.a)
    assert await training.a.upload(header, files) == 1
    assert (training.artifacts, await training.participant(training.a)) == (kept, part)
    other, other_files = training.a.offer(training.task, spoil=0.5)
    for work in (lambda: training.a.upload(other, other_files), lambda: training.a.received(other)):
        error = await refused(work)
        assert isinstance(error, AlreadyExists)
        digests = header.artifacts[0].sha256, other.artifacts[0].sha256
        assert (error.facts["accepted"], error.facts["offered"]) == digests
        assert all(digest in error.message for digest in digests)
    assert training.artifacts == kept
    assert await training.refusal_of(training.a) == error.message


async def test_another_fisher_file_alone_is_other_bytes_too(training: Training) -> None:
    header, files = training.a.offer(training.task)
    await training.a.upload(header, files)
    other = pb.UpdateHeader.FromString(header.SerializeToString())
    other.artifacts[1].sha256 = "0" * 64
    error = await refused(lambda: training.a.received(other))
    assert (error.facts["accepted"], error.facts["offered"]) == (header.artifacts[1].sha256, "0" * 64)


async def test_the_newer_of_two_uploads_at_once_is_the_one_that_counts(training: Training) -> None:
    header, files = training.a.offer(training.task)
    older = await training.a.begin_upload(header, files, 100)
    assert await training.a.upload(header, files, start=100) == 1
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await older
    error = from_rpc_error(raised.value, "the aggregator")
    assert isinstance(error, ServerBusy)
    assert error.retryable


async def test_parts_of_other_bytes_and_of_closed_rounds_are_dropped(training: Training) -> None:
    header, files = training.a.offer(training.task)
    (await training.a.begin_upload(header, files, 100)).cancel()
    other, other_files = training.a.offer(training.task, spoil=0.5)
    (await training.a.begin_upload(other, other_files, 50)).cancel()
    assert (await training.a.received(header)).received_bytes == 0
    assert sum(path.stat().st_size for path in training.incoming) == 50
    cancel = rpb.CancelRunRequest(name=RUN)
    await RunServiceStub(training.channel).CancelRun(cancel, timeout=10)
    async with asyncio.timeout(10):
        while training.incoming:
            await asyncio.sleep(0.05)
    assert isinstance(await refused(lambda: training.a.received(other)), RoundClosed)


async def test_a_round_that_closes_under_an_upload_takes_nothing_of_it(training: Training) -> None:
    before = training.artifacts
    header, files = training.a.offer(training.task)
    call = await training.a.begin_upload(header, files, 100)
    cancel = rpb.CancelRunRequest(name=RUN)
    await RunServiceStub(training.channel).CancelRun(cancel, timeout=10)
    rest = b"".join(file.read_bytes() for file in files)[100:]
    await call.write(pb.UploadUpdateRequest(chunk=artifact_pb2.ArtifactChunk(offset=100, data=rest)))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert isinstance(from_rpc_error(raised.value, "the aggregator"), RoundClosed)
    assert (training.artifacts, training.incoming) == (before, [])


async def test_parts_of_rounds_that_closed_while_nobody_looked_are_dropped_at_the_start(tmp_path: Path) -> None:
    stray = tmp_path / "state" / "incoming" / "gone" / "3" / "a" / "digest"
    stray.mkdir(parents=True)
    (stray / "0.part").write_bytes(b"x")
    process = AggregatorProcess(tmp_path / "state")
    await process.start()
    assert not stray.exists()
    assert process.kill(signal.SIGTERM) == 0


async def test_an_evicted_client_is_refused_everywhere(training: Training) -> None:
    header, files = training.a.offer(training.task)
    evict = rpb.EvictClientRequest(name=training.a.name)
    await RunServiceStub(training.channel).EvictClient(evict, timeout=10)
    for work in (
        lambda: training.a.upload(header, files),
        lambda: training.a.received(header),
        training.a.join,
        training.a.poll,
    ):
        error = await refused(work)
        assert isinstance(error, ClientEvicted)
        assert training.a.name in error.message
    assert training.incoming == []
