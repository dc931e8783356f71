"""What a service says, and does, while it waits for a peer that TLS keeps it from."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fednano.config import Security
from fednano.errors import PeerUnavailable, PeerUntrusted, Unauthenticated
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.rpc.diagnosis import diagnose, host_and_port
from fednano.rpc.server import serving
from fednano.security.authority import Authority, create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role

PLAINTEXT = Security(insecure=True)
SERVER = Subject(role=Role.SERVER, id="s1")
SITE = Subject(role=Role.CLIENT, id="site-a")


def security(authority: Authority, subject: Subject, **changed: Any) -> Security:
    folder = authority.folder / f"{subject.role}-{subject.id}"
    found = Security(tls_ca=folder / "ca.crt", tls_cert=folder / "tls.crt", tls_key=folder / "tls.key")
    return found.model_copy(update=changed)


@pytest.fixture
def authorities(tmp_path: Path) -> list[Authority]:
    made = [create_authority(tmp_path / name)[0] for name in ("ca", "other")]
    for authority in made:
        for subject in (SERVER, SITE):
            authority.issue(subject)
    return made


@pytest.fixture
async def address(authorities: list[Authority]) -> AsyncIterator[str]:
    crl = authorities[0].folder / "ca.crl"
    async with serving({}, "127.0.0.1:0", security(authorities[0], SERVER, tls_crl=crl), grace_s=0.1) as running:
        yield running.address


async def test_the_reason_is_in_the_failure_and_once_in_the_log(address: str, authorities: list[Authority]) -> None:
    with capture_logs() as logs:
        async with open_channel(address, security(authorities[1], SITE)) as channel:
            with pytest.raises(PeerUnavailable, match=r"the server: the peer's certificate .* was issued by") as raised:
                await wait_until_serving(channel, "", "the server", timeout_s=1.5)
    assert raised.value.facts["fault"] == "unknown_ca"
    told = [line for line in logs if line["event"] == "connection_fails"]
    assert [(line["peer"], line["fault"]) for line in told] == [(address, "unknown_ca")]


async def test_a_file_that_is_set_right_meanwhile_ends_the_wait(address: str, authorities: list[Authority]) -> None:
    wrong, right = (security(authority, SITE) for authority in reversed(authorities))
    async with open_channel(address, wrong) as channel:
        waiting = asyncio.create_task(wait_until_serving(channel, "", "the server", timeout_s=20))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        for name in ("tls_key", "tls_cert", "tls_ca"):
            getattr(wrong, name).write_bytes(getattr(right, name).read_bytes())
        await waiting


async def test_a_revoked_client_does_not_go_on_trying(address: str, authorities: list[Authority]) -> None:
    authorities[0].revoke(Role.CLIENT, "site-a")
    async with open_channel(address, security(authorities[0], SITE)) as channel:
        with pytest.raises(Unauthenticated, match="client/site-a is revoked"):
            await wait_until_serving(channel, "", "the server", timeout_s=20)


async def test_a_revoked_server_is_left_by_who_has_the_list(authorities: list[Authority]) -> None:
    crl = authorities[0].folder / "ca.crl"
    # Its own list would not let the server's clients see this.
    async with serving({}, "127.0.0.1:0", security(authorities[0], SERVER), grace_s=0.1) as running:
        async with open_channel(running.address, security(authorities[0], SITE, tls_crl=crl)) as channel:
            await wait_until_serving(channel, "", "the server", timeout_s=10)
        authorities[0].revoke(Role.SERVER, "s1")
        async with open_channel(running.address, security(authorities[0], SITE, tls_crl=crl)) as channel:
            with pytest.raises(PeerUntrusted, match="do not trust this peer"):
                await wait_until_serving(channel, "", "the server", timeout_s=10)


async def test_nothing_is_found_where_all_is_well_or_nobody_listens(address: str, authorities: list[Authority]) -> None:
    chosen = security(authorities[0], SITE)
    assert await asyncio.to_thread(diagnose, address, chosen) is None
    async with serving({}, "127.0.0.1:0", PLAINTEXT, grace_s=0.1) as running:
        assert await asyncio.to_thread(diagnose, running.address, PLAINTEXT) is None
    for nobody in (chosen, PLAINTEXT):
        assert await asyncio.to_thread(diagnose, running.address, nobody) is None


async def test_a_peer_that_hangs_up_is_only_perhaps_the_certificates_fault(authorities: list[Authority]) -> None:
    """As one that is just being stopped does."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await asyncio.to_thread(diagnose, f"127.0.0.1:{port}", security(authorities[0], SITE))
    assert found is None or not found.is_sure


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("a.example:7000", ("a.example", 7000)),
        ("dns:///a.example:7000", ("a.example", 7000)),
        ("[::1]:7000", ("::1", 7000)),
        ("unix:/tmp/socket", None),
        ("a.example", None),
    ],
)
def test_a_place_is_read_from_an_address(address: str, place: tuple[str, int] | None) -> None:
    assert host_and_port(address) == place
