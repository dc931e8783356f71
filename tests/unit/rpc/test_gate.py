"""The gate in front of a real server: what it refuses the servicer never sees, and the audit log has it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fednano.config import Security
from fednano.errors import (
    FieldInvalid,
    MessageTooLarge,
    NotTheClient,
    RoleDenied,
    ServerBusy,
    Unauthenticated,
    WireError,
)
from fednano.rpc.audit import AuditLog, verify
from fednano.rpc.callers import BearerVerifier, Caller
from fednano.rpc.channels import open_channel
from fednano.rpc.gate import GateTerms
from fednano.rpc.limits import DEFAULT_LIMITS, CallLimits
from fednano.rpc.ops_channel import open_ops_channel
from fednano.rpc.policy import SMALL_BYTES
from fednano.rpc.server import RunningServer, serving
from fednano.rpc.status import from_rpc_error
from fednano.security.authority import Authority, create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role
from fednano.v1 import aggregator_service_pb2 as apb
from fednano.v1 import aggregator_service_pb2_grpc as apb_grpc
from fednano.v1 import enrollment_service_pb2 as epb
from fednano.v1 import enrollment_service_pb2_grpc as epb_grpc
from fednano.v1 import run_service_pb2 as pb
from fednano.v1 import run_service_pb2_grpc as pb_grpc

GET_RUN = "/fednano.v1.RunService/GetRun"


class Noting(pb_grpc.RunServiceServicer, apb_grpc.AggregatorServiceServicer, epb_grpc.EnrollmentServiceServicer):
    """Notes what reaches it; there is no run to cancel."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        self.seen.append(request.name)
        return pb.GetRunResponse()

    async def CreateJoinToken(self, request: epb.CreateJoinTokenRequest, context: Any) -> epb.CreateJoinTokenResponse:
        return epb.CreateJoinTokenResponse(
            token=f"secret of {request.client_id}", token_id=f"id of {request.client_id}"
        )

    async def PauseRun(self, request: pb.PauseRunRequest, context: Any) -> pb.PauseRunResponse:
        return pb.PauseRunResponse()

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:
        raise FieldInvalid("no such thing", field="name")

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        await asyncio.sleep(10)
        return pb.ResumeRunResponse()

    async def UploadUpdate(self, request_iterator: Any, context: Any) -> apb.UploadUpdateResponse:
        async for frame in request_iterator:
            self.seen.append(frame.header.client)
        return apb.UploadUpdateResponse(update_count=len(self.seen))


class Fleeting:
    """Takes any token, for an operator, and for a moment."""

    async def verify(self, token: str, address: str) -> Caller:
        return Caller(role=Role.OPERATOR, id=token, address=address, proof="token", good_for_s=0.3)


class Scene:
    """A server whose callers have certificates."""

    def __init__(self, authority: Authority, running: RunningServer, servicer: Noting, audit: Path) -> None:
        self.authority, self.servicer, self.audit = authority, servicer, audit
        self.address, self.ops_address = running.address, running.ops_address

    def channel(self, role: Role, holder_id: str = "somebody") -> grpc.aio.Channel:
        return open_channel(self.address, security(self.authority, role, holder_id))

    def entries(self) -> list[tuple[str, str, str]]:
        assert verify(self.audit).sequence > 0
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [(line["what"], line["method"].rpartition("/")[2], line["outcome"]) for line in lines]


def security(authority: Authority, role: Role, holder_id: str) -> Security:
    folder = authority.issue(Subject(role=role, id=holder_id))
    return Security(tls_ca=folder / "ca.crt", tls_cert=folder / "tls.crt", tls_key=folder / "tls.key")


@asynccontextmanager
async def scene(
    folder: Path, limits: CallLimits = DEFAULT_LIMITS, bearer: BearerVerifier | None = None
) -> AsyncIterator[Scene]:
    authority, _ = create_authority(folder / "certs")
    ours, servicer, audit = security(authority, Role.AGGREGATOR, "ours"), Noting(), AuditLog(folder / "audit.jsonl")
    services = {
        "fednano.v1.RunService": lambda server: pb_grpc.add_RunServiceServicer_to_server(servicer, server),
        "fednano.v1.AggregatorService": lambda server: apb_grpc.add_AggregatorServiceServicer_to_server(
            servicer, server
        ),
        "fednano.v1.EnrollmentService": lambda server: epb_grpc.add_EnrollmentServiceServicer_to_server(
            servicer, server
        ),
    }
    terms = GateTerms(security=ours, limits=limits, audit=audit, bearer=bearer)
    try:
        listen = "127.0.0.1:0"
        async with serving(services, listen, ours, grace_s=0.1, gate=terms, ops_listen=listen) as running:
            yield Scene(authority, running, servicer, folder / "audit.jsonl")
    finally:
        audit.close()


async def caught(call: Any) -> WireError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value, "the server")


async def test_a_refused_caller_never_reaches_the_servicer_nor_has_its_bytes_read(tmp_path: Path) -> None:
    async with scene(tmp_path) as found, found.channel(Role.CLIENT) as channel:
        # Bytes that are no message: who may not call is not even told that.
        raw = channel.unary_unary(GET_RUN)
        assert isinstance(await caught(raw(b"\xff\xff\xff", timeout=5)), RoleDenied)
        assert found.servicer.seen == []
        assert found.entries() == [("refused", "GetRun", "ROLE_DENIED")]


async def test_bytes_that_are_no_message_are_named_as_such(tmp_path: Path) -> None:
    async with scene(tmp_path) as found, found.channel(Role.VIEWER) as channel:
        error = await caught(channel.unary_unary(GET_RUN)(b"\xff\xff\xff", timeout=5))
        assert isinstance(error, FieldInvalid)
        assert "no message of" in error.message


async def test_a_message_is_measured_before_it_is_read(tmp_path: Path) -> None:
    async with scene(tmp_path) as found, found.channel(Role.VIEWER) as channel:
        stub = pb_grpc.RunServiceStub(channel)
        await stub.GetRun(pb.GetRunRequest(name="a" * (SMALL_BYTES - 100)), timeout=5)
        error = await caught(stub.GetRun(pb.GetRunRequest(name="a" * SMALL_BYTES), timeout=5))
        assert isinstance(error, MessageTooLarge)
        assert error.facts["max_bytes"] == str(SMALL_BYTES)
        assert len(found.servicer.seen) == 1


async def test_a_hasty_peer_is_told_when_to_come_back_and_others_are_served(tmp_path: Path) -> None:
    limits = CallLimits(calls_per_s=0.5, call_burst=2, calls_at_once=10)
    async with scene(tmp_path, limits) as found, found.channel(Role.VIEWER, "hasty") as channel:
        stub = pb_grpc.RunServiceStub(channel)
        for _ in range(2):
            await stub.GetRun(pb.GetRunRequest(), timeout=5)
        for _ in range(3):
            error = await caught(stub.GetRun(pb.GetRunRequest(), timeout=5))
            assert isinstance(error, ServerBusy)
            assert 0 < error.retry_after_s <= 2
        async with found.channel(Role.VIEWER, "calm") as other:
            await pb_grpc.RunServiceStub(other).GetRun(pb.GetRunRequest(), timeout=5)
        # Once, however often: nobody fills the disk with it.
        assert found.entries() == [("refused", "GetRun", "SERVER_BUSY")]


async def test_a_peer_has_only_so_many_streams_open(tmp_path: Path) -> None:
    limits = CallLimits(calls_per_s=100, call_burst=100, calls_at_once=1)
    async with scene(tmp_path, limits) as found, found.channel(Role.CLIENT, "a") as channel:
        stub = apb_grpc.AggregatorServiceStub(channel)
        frame = apb.UploadUpdateRequest(header=apb.UpdateHeader(client="runs/r/clients/a"))
        first = stub.UploadUpdate(timeout=10)
        await first.write(frame)
        second = stub.UploadUpdate(iter([frame]), timeout=5)
        assert isinstance(await caught(second), ServerBusy)
        await first.done_writing()
        assert (await first).update_count == 1


async def test_a_stream_for_another_client_ends_at_its_header(tmp_path: Path) -> None:
    async with scene(tmp_path) as found, found.channel(Role.CLIENT, "a") as channel:
        frame = apb.UploadUpdateRequest(header=apb.UpdateHeader(client="runs/r/clients/b"))
        call = apb_grpc.AggregatorServiceStub(channel).UploadUpdate(iter([frame] * 50), timeout=5)
        assert isinstance(await caught(call), NotTheClient)
        assert found.servicer.seen == []
        assert found.entries() == [("refused", "UploadUpdate", "NOT_THE_CLIENT")]


async def test_a_later_header_of_a_stream_is_judged_too(tmp_path: Path) -> None:
    async with scene(tmp_path) as found, found.channel(Role.CLIENT, "a") as channel:
        frames = [apb.UploadUpdateRequest(header=apb.UpdateHeader(client=f"runs/r/clients/{name}")) for name in "ab"]
        call = apb_grpc.AggregatorServiceStub(channel).UploadUpdate(iter(frames), timeout=5)
        assert isinstance(await caught(call), NotTheClient)


async def test_the_audit_log_has_what_operators_ask_and_what_became_of_it(tmp_path: Path) -> None:
    async with scene(tmp_path) as found, found.channel(Role.OPERATOR, "ann") as channel:
        stub = pb_grpc.RunServiceStub(channel)
        await stub.GetRun(pb.GetRunRequest(name="runs/a"), timeout=5)
        await stub.PauseRun(pb.PauseRunRequest(name="runs/a"), timeout=5)
        await caught(stub.CancelRun(pb.CancelRunRequest(name="runs/a"), timeout=5))
        assert found.entries() == [
            ("asked", "PauseRun", ""),
            ("done", "PauseRun", ""),
            ("asked", "CancelRun", ""),
            ("failed", "CancelRun", "FIELD_INVALID"),
        ]
        first = json.loads(found.audit.read_text().splitlines()[0])
        assert (first["role"], first["id"], first["proof"]) == ("operator", "ann", "certificate")
        assert first["resource"] == {"name": "runs/a"}


async def test_an_action_that_cannot_be_written_down_is_not_carried_out(tmp_path: Path) -> None:
    async with scene(tmp_path) as found, found.channel(Role.OPERATOR, "ann") as channel:
        whole, limit = found.audit.stat().st_size, "the audit log"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fednano.rpc.audit.os.write", lambda *_: 0)
            error = await caught(pb_grpc.RunServiceStub(channel).PauseRun(pb.PauseRunRequest(name="runs/a"), timeout=5))
        assert limit in error.message
        assert found.audit.stat().st_size == whole


async def test_a_call_lasts_no_longer_than_its_token(tmp_path: Path) -> None:
    async with scene(tmp_path, bearer=Fleeting()) as found:
        authority = (found.authority.folder / "ca.crt").read_bytes()
        async with open_ops_channel(found.ops_address, authority, "ann") as channel:
            stub = pb_grpc.RunServiceStub(channel)
            await stub.GetRun(pb.GetRunRequest(), timeout=5)
            error = await caught(stub.ResumeRun(pb.ResumeRunRequest(name="runs/a"), timeout=5))
        assert (type(error), error.facts["fault"]) == (Unauthenticated, "expired")
        assert found.entries() == [("asked", "ResumeRun", ""), ("refused", "ResumeRun", "UNAUTHENTICATED")]


async def test_the_audit_log_has_names_that_only_the_answer_tells(tmp_path: Path) -> None:
    async with scene(tmp_path) as found, found.channel(Role.OPERATOR) as channel:
        request = epb.CreateJoinTokenRequest(client_id="box")
        await epb_grpc.EnrollmentServiceStub(channel).CreateJoinToken(request, timeout=5)
        asked, done = (json.loads(line)["resource"] for line in found.audit.read_text().splitlines())
    assert asked == {"client_id": "box"}
    assert done == {"client_id": "box", "token_id": "id of box"}


async def test_refusals_of_one_peer_do_not_fill_the_audit_log_and_are_counted(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fednano.rpc.limits.NOTE_BURST", 2.0)
        async with scene(tmp_path) as found:
            async with found.channel(Role.VIEWER, "hasty") as channel:
                for _ in range(5):
                    await caught(pb_grpc.RunServiceStub(channel).PauseRun(pb.PauseRunRequest(), timeout=5))
            async with found.channel(Role.VIEWER, "calm") as channel:
                await caught(pb_grpc.RunServiceStub(channel).PauseRun(pb.PauseRunRequest(), timeout=5))
            ids = [json.loads(line)["id"] for line in found.audit.read_text().splitlines()]
    assert ids == ["hasty", "hasty", "calm"]


async def test_who_comes_without_a_certificate_is_told_of_both_ways(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        authority = (found.authority.folder / "ca.crt").read_bytes()
        async with open_ops_channel(found.ops_address, authority) as channel:
            error = await caught(pb_grpc.RunServiceStub(channel).GetRun(pb.GetRunRequest(), timeout=5))
    assert (type(error), error.facts["fault"]) == (Unauthenticated, "missing")
    assert "bearer token" in error.message
    assert "--listen" in error.message
