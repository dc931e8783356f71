"""Certificates that are renewed while both ends run: nobody restarts, nothing that is open ends."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry

from fednano.config import Security
from fednano.errors import SettingsInvalid, Unauthenticated
from fednano.metrics import RpcMetrics
from fednano.rpc.channels import open_channel
from fednano.rpc.server import serving
from fednano.rpc.status import from_rpc_error
from fednano.security.authority import Authority, create_authority, read_certificate
from fednano.security.certificates import Subject
from fednano.security.identity import Role, peer_identity, serial_hex
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import split_service_pb2_grpc as pb_grpc

SERVICE = "fednano.v1.SplitService"
SERVER = Subject(role=Role.SERVER, id="s1")
SITE = Subject(role=Role.CLIENT, id="site-a")


class Echo(pb_grpc.SplitServiceServicer):
    """Says which certificate called, and answers a stream frame by frame."""

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        identity = peer_identity(context)
        return pb.GetModelResponse(model=pb.Model(name=identity.serial_hex if identity else "nobody"))

    async def StreamSteps(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.StreamStepsResponse]:
        async for _ in request_iterator:
            yield pb.StreamStepsResponse()

    def Decode(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.DecodeResponse]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Scene:
    authority: Authority
    address: str
    # The second one, where callers show no certificate.
    ops_address: str
    registry: CollectorRegistry

    def security(self, subject: Subject) -> Security:
        return security(self.authority, subject)

    def shown_serial(self, address: str = "") -> int:
        """Of the certificate that the server shows to a new connection."""
        files = self.security(SITE)
        context = ssl.create_default_context(cafile=files.tls_ca)
        context.load_cert_chain(str(files.tls_cert), str(files.tls_key))
        host, _, port = (address or self.address).rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            der = wrapped.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


def security(authority: Authority, subject: Subject) -> Security:
    folder = authority.folder / f"{subject.role}-{subject.id}"
    return Security(
        tls_ca=folder / "ca.crt",
        tls_cert=folder / "tls.crt",
        tls_key=folder / "tls.key",
        tls_crl=authority.folder / "ca.crl",
    )


def serial(authority: Authority, subject: Subject) -> int:
    return read_certificate(authority.folder / f"{subject.role}-{subject.id}" / "tls.crt").serial_number


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    authority, _ = create_authority(tmp_path / "ca")
    for subject in (SERVER, SITE):
        authority.issue(subject)

    def add(server: grpc.aio.Server) -> None:
        pb_grpc.add_SplitServiceServicer_to_server(Echo(), server)

    files, registry = security(authority, SERVER), CollectorRegistry()
    async with serving(
        {SERVICE: add}, "127.0.0.1:0", files, grace_s=0.1, metrics=RpcMetrics(registry), ops_listen="127.0.0.1:0"
    ) as running:
        yield Scene(authority=authority, address=running.address, ops_address=running.ops_address, registry=registry)


async def caller_serial(stub: Any) -> int:
    return int((await stub.GetModel(pb.GetModelRequest(), timeout=10)).model.name, 16)


async def ask(stream: Any) -> None:
    await stream.write(pb.StreamStepsRequest())
    assert await asyncio.wait_for(stream.read(), 10) == pb.StreamStepsResponse()


async def test_a_server_shows_its_renewed_certificate_and_open_streams_go_on(scene: Scene) -> None:
    async with open_channel(scene.address, scene.security(SITE)) as channel:
        stream = pb_grpc.SplitServiceStub(channel).StreamSteps(timeout=60)
        await ask(stream)
        first = await asyncio.to_thread(scene.shown_serial)
        scene.authority.issue(SERVER)
        second = await asyncio.to_thread(scene.shown_serial)
        assert (first != second, second) == (True, serial(scene.authority, SERVER))
        assert await asyncio.to_thread(scene.shown_serial, scene.ops_address) == second
        await ask(stream)
        stream.cancel()


async def test_the_end_of_the_certificate_in_use_is_measured(scene: Scene) -> None:
    name = "fednano_certificate_end_timestamp_seconds"
    before = scene.registry.get_sample_value(name)
    scene.authority.issue(SERVER, days=1)
    await asyncio.to_thread(scene.shown_serial)
    after = scene.registry.get_sample_value(name)
    assert (before or 0) - (after or 0) == pytest.approx(89 * 86400, abs=60)


async def test_a_client_shows_its_renewed_certificate_and_open_streams_go_on(scene: Scene) -> None:
    async with open_channel(scene.address, scene.security(SITE)) as channel:
        stub = pb_grpc.SplitServiceStub(channel)
        first = await caller_serial(stub)
        stream = stub.StreamSteps(timeout=60)
        await ask(stream)
        scene.authority.issue(SITE)
        second = await caller_serial(stub)
        assert (first != second, second) == (True, serial(scene.authority, SITE))
        await ask(stream)
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("name", ["tls.key", "tls.crt", "ca.crt"])
@pytest.mark.parametrize("content", [b"", b"half of a fi", None])
async def test_files_that_are_broken_meanwhile_change_nothing(scene: Scene, name: str, content: bytes | None) -> None:
    before = serial(scene.authority, SERVER)
    files = [scene.authority.folder / f"{subject.role}-{subject.id}" / name for subject in (SERVER, SITE)]
    async with open_channel(scene.address, scene.security(SITE)) as channel:
        stub = pb_grpc.SplitServiceStub(channel)
        await caller_serial(stub)
        kept = files[1].read_bytes()
        for file in files:
            file.unlink() if content is None else file.write_bytes(content)
        await caller_serial(stub)
        files[1].write_bytes(kept)
        assert await asyncio.to_thread(scene.shown_serial) == before


async def test_a_new_authority_is_taken_in_beside_the_old_one(scene: Scene, tmp_path: Path) -> None:
    other, _ = create_authority(tmp_path / "other")
    other.issue(SITE)
    both = b"".join((one.folder / "ca.crt").read_bytes() for one in (scene.authority, other))
    (scene.authority.folder / "server-s1" / "ca.crt").write_bytes(both)
    (other.folder / "client-site-a" / "ca.crt").write_bytes(both)
    async with open_channel(scene.address, security(other, SITE)) as channel:
        assert await caller_serial(pb_grpc.SplitServiceStub(channel)) == serial(other, SITE)


async def refusal(call: Any) -> Unauthenticated:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(call, 10)
    error = from_rpc_error(raised.value, "the server")
    assert isinstance(error, Unauthenticated), error
    return error


async def test_a_revoked_certificate_ends_open_streams_and_opens_no_others(scene: Scene) -> None:
    async with open_channel(scene.address, scene.security(SITE)) as channel:
        stub = pb_grpc.SplitServiceStub(channel)
        stream, number = stub.StreamSteps(timeout=60), await caller_serial(stub)
        await ask(stream)
        scene.authority.revoke(Role.CLIENT, "site-a")
        begin_s = asyncio.get_running_loop().time()
        ended = await refusal(stream.read())
        assert asyncio.get_running_loop().time() - begin_s < 5
        refused = await refusal(stub.GetModel(pb.GetModelRequest(), timeout=10))
        for error in (ended, refused):
            assert error.facts == {"fault": "revoked", "serial": serial_hex(number)}
            assert "client/site-a is revoked" in error.message
        # The same identity, let in again.
        scene.authority.issue(SITE)
        assert await caller_serial(stub) == serial(scene.authority, SITE)


async def test_a_call_under_way_ends_with_its_certificate(scene: Scene) -> None:
    scene.authority.issue(SITE, days=3 / 86400)
    async with open_channel(scene.address, scene.security(SITE)) as channel:
        stub = pb_grpc.SplitServiceStub(channel)
        stream = stub.StreamSteps(timeout=60)
        await ask(stream)
        error = await refusal(stream.read())
        assert error.facts["fault"] == "expired"
        assert "and the clock here says" in error.message


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files: files.tls_key.unlink(), "--tls-key: cannot read"),
        (lambda files: files.tls_cert.write_text("x"), "--tls-cert: .* holds no certificate"),
        (lambda files: files.tls_key.write_text("x"), "--tls-key: .* holds no private key"),
        (lambda files: files.tls_ca.write_bytes(b""), "--tls-ca: .* holds no certificate"),
    ],
)
async def test_files_that_are_wrong_at_the_start_are_named(
    tmp_path: Path, spoil: Callable[[Security], object], words: str
) -> None:
    authority, _ = create_authority(tmp_path / "ca")
    authority.issue(SERVER)
    files = security(authority, SERVER)
    spoil(files)
    with pytest.raises(SettingsInvalid, match=words):
        open_channel("127.0.0.1:1", files)
    with pytest.raises(SettingsInvalid, match=words):
        async with serving({}, "127.0.0.1:0", files, grace_s=0.1):
            pass


def test_a_key_of_another_certificate_and_one_that_has_ended_are_named(tmp_path: Path) -> None:
    authority, _ = create_authority(tmp_path / "ca")
    authority.issue(SERVER)
    authority.issue(SITE, days=-0.001)
    with pytest.raises(SettingsInvalid, match=r"--tls-cert: .* ended at .* and this machine's clock says"):
        open_channel("127.0.0.1:1", security(authority, SITE))
    mixed = security(authority, SERVER).model_copy(update={"tls_key": authority.folder / "client-site-a" / "tls.key"})
    with pytest.raises(SettingsInvalid, match=r"--tls-key: .* is not the key of"):
        open_channel("127.0.0.1:1", mixed)
