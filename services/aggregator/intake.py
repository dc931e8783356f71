"""Accepting an update: received whole, checked, on disk and recorded, and only then acknowledged."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from fednano.adapter_layout import adapter_shapes
from fednano.errors import AlreadyExists, FieldInvalid, NoProgress, RoundClosed, StreamMalformed, UpdateInvalid
from fednano.names import ClientName, RoundName
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import artifact_pb2, run_pb2
from fednano.wire.artifacts import ArtifactReceiver
from services.aggregator.federation import Federation
from services.aggregator.store import rounds, runs
from services.aggregator.store.participants import load_participation, record_refusal, record_update
from services.aggregator.update_check import check_base, check_tensors, max_file_bytes

FRAME_TIMEOUT_S = 60.0
KINDS = (artifact_pb2.ARTIFACT_KIND_ADAPTER, artifact_pb2.ARTIFACT_KIND_FISHER)
Frames = AsyncIterator[pb.UploadUpdateRequest]


async def take_update(federation: Federation, frames: Frames) -> int:
    """Accepts one update and returns how many the round then has. Idempotent for the same digests."""
    header = (await _next_frame(frames)).header
    name, client = RoundName.parse(header.round, "header.round"), ClientName.parse(header.client, "header.client")
    config = _check_header(federation, header, name, client)
    if _is_known(federation, header, name, client):
        return _update_count(federation, name)
    _check_open(federation, name)
    try:
        await _receive(federation, frames, header, config)
    except UpdateInvalid as refusal:
        with federation.store.transaction() as connection:
            record_refusal(connection, name, client, refusal.message)
            rounds.announce_round(connection, name)
        federation.changes.notify(name.run)
        raise
    _record(federation, header, name, client)
    federation.changes.notify(name.run)
    return _update_count(federation, name)


def _check_header(
    federation: Federation, header: pb.UpdateHeader, name: RoundName, client: ClientName
) -> run_pb2.RunConfig:
    with federation.store.transaction() as connection:
        config = runs.load_run(connection, name.run).config
        rounds.load_round(connection, name)
        load_participation(connection, name, client)
    wanted = KINDS if config.method == run_pb2.METHOD_FEDNANO else KINDS[:1]
    if tuple(spec.kind for spec in header.artifacts) != wanted:
        kinds = ", ".join(artifact_pb2.ArtifactKind.Name(kind) for kind in wanted)
        raise FieldInvalid(f"header.artifacts must announce {kinds}, in that order", field="header.artifacts")
    if header.example_count < 1:
        raise FieldInvalid("header.example_count must be 1 or more", field="header.example_count")
    return config


def _is_known(federation: Federation, header: pb.UpdateHeader, name: RoundName, client: ClientName) -> bool:
    """Whether these very digests were accepted before; raises AlreadyExists where others were."""
    with federation.store.transaction() as connection:
        part = load_participation(connection, name, client)
    if not part.is_updated:
        return False
    accepted = [part.adapter_sha256, part.fisher_sha256][: len(header.artifacts)]
    offered = [spec.sha256 for spec in header.artifacts]
    if accepted != offered:
        raise AlreadyExists(
            f"{client} already gave {name} an update with {accepted[0]}; {offered[0]} comes too late",
            name=str(name),
            accepted=accepted[0],
            offered=offered[0],
        )
    return True


def _check_open(federation: Federation, name: RoundName) -> None:
    with federation.store.transaction() as connection:
        run = runs.load_run(connection, name.run)
        state = rounds.load_round(connection, name).state
    if run.state in runs.ENDED or state != run_pb2.Round.STATE_TRAINING:
        words = run_pb2.Round.State.Name(state)
        raise RoundClosed(f"{name} takes no more updates: it is {words}; poll for a task", name=str(name), state=words)


async def _receive(federation: Federation, frames: Frames, header: pb.UpdateHeader, config: run_pb2.RunConfig) -> None:
    adapter = config.adapter
    shapes = adapter_shapes(adapter.modalities, adapter.hidden_size, adapter.rank)
    name = RoundName.parse(header.round)
    with federation.store.transaction() as connection:
        base_sha256 = rounds.load_round(connection, name).base_adapter_sha256
    check_base(header.client, header.base_adapter_sha256, base_sha256)
    with federation.artifacts.draft_folder() as folder:
        targets = [folder / f"{spec.kind}-{spec.sha256}" for spec in header.artifacts]
        with ArtifactReceiver(header.artifacts, targets, max_file_bytes(shapes)) as receiver:
            await _receive_chunks(frames, receiver, sum(spec.size_bytes for spec in header.artifacts))
            await asyncio.to_thread(receiver.finish)
        for spec, file in zip(header.artifacts, targets, strict=True):
            is_fisher = spec.kind == artifact_pb2.ARTIFACT_KIND_FISHER
            await asyncio.to_thread(check_tensors, header.client, file, shapes, is_fisher=is_fisher)
        _adopt(federation, header.artifacts, targets)


async def _receive_chunks(frames: Frames, receiver: ArtifactReceiver, total_bytes: int) -> None:
    received = 0
    while received < total_bytes:
        frame = await _next_frame(frames)
        if frame.WhichOneof("frame") != "chunk" or not frame.chunk.data:
            raise StreamMalformed("a chunk with data must follow the header: send the update again")
        receiver.add(frame.chunk)
        received += len(frame.chunk.data)


def _adopt(federation: Federation, specs: Sequence[artifact_pb2.ArtifactSpec], files: Sequence[Path]) -> None:
    for spec, file in zip(specs, files, strict=True):
        federation.artifacts.adopt(file, spec.sha256)


def _record(federation: Federation, header: pb.UpdateHeader, name: RoundName, client: ClientName) -> None:
    """Records the update unless the round closed, or took another from this client, while the bytes came in."""
    _check_open(federation, name)
    if _is_known(federation, header, name, client):
        return
    digests = [spec.sha256 for spec in header.artifacts]
    with federation.store.transaction() as connection:
        record_update(
            connection,
            name,
            client,
            example_count=header.example_count,
            metrics=header.metrics,
            adapter_sha256=digests[0],
            fisher_sha256=digests[1] if len(digests) > 1 else "",
        )
        rounds.announce_round(connection, name)


def _update_count(federation: Federation, name: RoundName) -> int:
    with federation.store.transaction() as connection:
        return rounds.load_round(connection, name).update_count


async def _next_frame(frames: Frames) -> pb.UploadUpdateRequest:
    try:
        async with asyncio.timeout(FRAME_TIMEOUT_S):
            return await anext(frames)
    except TimeoutError:
        raise NoProgress(f"no frame of the update for {FRAME_TIMEOUT_S:g} s: send it again") from None
    except StopAsyncIteration:
        raise StreamMalformed("the update's stream ended too early: send it again") from None
