"""Accepting an update: received whole, checked, on disk and recorded, and only then acknowledged.

Everything that touches a disk runs in a thread. An upload that breaks leaves only its draft; see ``upload_drafts``.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy import Connection
from structlog.contextvars import bind_contextvars

from fednano.errors import (
    AlreadyExists,
    ClientNotSelected,
    DigestMismatch,
    FieldInvalid,
    ResourceNotFound,
    RoundClosed,
    StorageFull,
    StreamMalformed,
    UpdateInvalid,
)
from fednano.names import RoundName
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import artifact_pb2, run_pb2
from services.aggregator.admission import Admission, Offer, admit, read_offer
from services.aggregator.disk_faults import disk_faults_named
from services.aggregator.federation import Federation
from services.aggregator.store import rounds, runs
from services.aggregator.store.participants import record_refusal, record_update, update_count
from services.aggregator.update_check import check_tensors
from services.aggregator.upload_drafts import UploadDraft, clear_stale_drafts
from services.aggregator.upload_turns import Frames, Turn, UploadTurns

# An operator sees these beside the client's name.
REFUSALS = (UpdateInvalid, FieldInvalid, DigestMismatch, AlreadyExists, ClientNotSelected, RoundClosed)
# After these nothing is to be gone on with.
SPOILED = (UpdateInvalid, DigestMismatch, RoundClosed, ClientNotSelected, StorageFull)
ResultT = TypeVar("ResultT")


class Intake:
    """Takes the updates of all runs. Its methods are for the event loop's thread."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._turns = UploadTurns()

    async def received(self, header: pb.UpdateHeader) -> pb.GetUploadResponse:
        """How much of an update has arrived. Raises what ``take`` would raise for such a header."""
        offer = read_offer(header)
        return await self._noting_refusal(offer, self._received(offer))

    async def take(self, frames: Frames) -> int:
        """Accepts one update and returns how many the round then has. Idempotent for the same digests."""
        first = await Turn(is_first=True).next_frame(frames)
        if first is None or first.WhichOneof("frame") != "header":
            raise StreamMalformed("an update begins with its header: send it first")
        offer = read_offer(first.header)
        # For the rest of this call's task, the refusal's line too.
        bind_contextvars(run=str(offer.name.parent), round=str(offer.name), client=str(offer.client))
        async with self._federation.expulsions.transfer(offer.client):
            count = await self._noting_refusal(offer, self._take(frames, offer))
        self._federation.changes.notify(offer.name.run)
        return count

    async def _noting_refusal(self, offer: Offer, answer: Awaitable[ResultT]) -> ResultT:
        try:
            return await answer
        except REFUSALS as refusal:
            words = refusal.message
            await in_thread(lambda: self._record_refusal(offer, words))
            self._federation.changes.notify(offer.name.run)
            raise

    async def _received(self, offer: Offer) -> pb.GetUploadResponse:
        admission = await in_thread(lambda: self._admit(offer))
        if admission.is_known:
            return pb.GetUploadResponse(received_bytes=offer.total_bytes, accepted=True)
        return pb.GetUploadResponse(received_bytes=await in_thread(self._draft(offer, admission).received_bytes))

    async def _take(self, frames: Frames, offer: Offer) -> int:
        admission = await in_thread(lambda: self._admit(offer))
        if admission.is_known:
            return admission.update_count
        draft = self._draft(offer, admission)
        async with self._turns.take(offer.name, offer.client) as turn:
            if not turn.is_first:
                admission = await in_thread(lambda: self._admit(offer))
                if admission.is_known:
                    return admission.update_count
            async with self._turns.room():
                return await self._receive(turn, frames, offer, admission, draft)

    async def _receive(self, turn: Turn, frames: Frames, offer: Offer, admission: Admission, draft: UploadDraft) -> int:
        try:
            await _write(turn, frames, draft)
            return await in_thread(lambda: self._accept(offer, admission, draft))
        except SPOILED:
            await in_thread(draft.drop)
            raise
        finally:
            draft.close()

    def _admit(self, offer: Offer) -> Admission:
        with self._federation.store.transaction() as connection:
            return admit(connection, offer)

    def _draft(self, offer: Offer, admission: Admission) -> UploadDraft:
        state = self._federation.settings.state
        return UploadDraft(state, offer.name, offer.client, offer.header, admission.max_file_bytes)

    def _accept(self, offer: Offer, admission: Admission, draft: UploadDraft) -> int:
        files = draft.finish()
        # Looked at once more: bytes of a round that has closed meanwhile should not be kept.
        self._admit(offer)
        for spec, file in zip(offer.header.artifacts, files, strict=True):
            with disk_faults_named(file):
                check_tensors(offer.header.client, file, admission.shapes[spec.kind], spec.kind)
        with self._federation.artifacts.naming([spec.sha256 for spec in offer.header.artifacts]):
            for spec, file in zip(offer.header.artifacts, files, strict=True):
                self._federation.artifacts.adopt(file, spec.sha256)
            with self._federation.store.transaction() as connection:
                count = _record(connection, offer)
        draft.drop()
        return count

    def _record_refusal(self, offer: Offer, words: str) -> None:
        try:
            with self._federation.store.transaction() as connection:
                # The last event of a run is its end.
                if runs.run_state(connection, offer.name.run) in runs.ENDED:
                    return
                if record_refusal(connection, offer.name, offer.client, words):
                    rounds.announce_round(connection, offer.name, offer.client)
        except ResourceNotFound:
            # Nobody that this aggregator knows: there is no row to write it to.
            return


def drop_stale_drafts(federation: Federation) -> None:
    """At the start: what has arrived for rounds that take no more updates is dropped."""

    def is_open(name: RoundName) -> bool:
        try:
            with federation.store.transaction() as connection:
                return rounds.load_head(connection, name).state == run_pb2.Round.STATE_TRAINING
        except ResourceNotFound:
            return False

    clear_stale_drafts(federation.settings.state, is_open)


async def in_thread(work: Callable[[], ResultT]) -> ResultT:
    """As ``asyncio.to_thread``, but it ends only when the work has: whoever is cancelled may then clean up."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def _write(turn: Turn, frames: Frames, draft: UploadDraft) -> None:
    """Writes the chunks to the draft, from where the first one begins, until all is there or the stream ends."""
    frame = await turn.next_frame(frames)
    offset = draft.received_bytes() if frame is None else frame.chunk.offset
    await in_thread(lambda: draft.open(offset))
    while frame is not None:
        chunk = frame.chunk
        if frame.WhichOneof("frame") != "chunk" or not chunk.data:
            raise StreamMalformed("a chunk with data must follow the header: send the update again")
        await in_thread(lambda chunk=chunk: draft.add(chunk))  # type: ignore[misc]
        frame = None if draft.is_complete else await turn.next_frame(frames)


def _record(connection: Connection, offer: Offer) -> int:
    """In the one transaction that looks whether the round still takes it; returns how many updates there are."""
    if not admit(connection, offer).is_known:
        digests = {spec.kind: spec.sha256 for spec in offer.header.artifacts}
        record_update(
            connection,
            offer.name,
            offer.client,
            example_count=offer.header.example_count,
            metrics=offer.header.metrics,
            adapter_sha256=digests[artifact_pb2.ARTIFACT_KIND_ADAPTER],
            fisher_sha256=digests.get(artifact_pb2.ARTIFACT_KIND_FISHER, ""),
            gram_sha256=digests.get(artifact_pb2.ARTIFACT_KIND_GRAM, ""),
        )
        rounds.announce_round(connection, offer.name, offer.client)
    return update_count(connection, offer.name)
