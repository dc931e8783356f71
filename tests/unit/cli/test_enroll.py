"""`fednano client enroll` at the wrong place: what is wrong is said, and nothing secret is sent."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fednano.cli.enroll import Enrolling, enroll
from fednano.cli.secret_file import read_secret
from fednano.config import Security
from fednano.errors import PeerUnavailable, PeerUntrusted, SettingsInvalid
from fednano.rpc.server import RunningServer, serving
from fednano.security.authority import Authority, create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role
from fednano.security.join_token import JoinToken, fingerprint


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "ca")[0]


@pytest.fixture
async def aggregator(authority: Authority) -> AsyncIterator[RunningServer]:
    """Its second address is one that its certificate does not name."""
    folder = authority.issue(Subject(role=Role.AGGREGATOR, id="a"))
    ours = Security(tls_ca=folder / "ca.crt", tls_cert=folder / "tls.crt", tls_key=folder / "tls.key")
    async with serving({}, "127.0.0.1:0", ours, grace_s=0.0, ops_listen="127.0.0.2:0") as running:
        yield running


def asked(authority: Authority, address: str, out: Path) -> Enrolling:
    token = JoinToken.new(fingerprint(authority.certificate))
    return Enrolling(token=token, aggregator=address, client_id="box", out=out, patience_s=0.5)


async def test_another_host_than_the_certificates_is_named_with_its_names(
    authority: Authority, aggregator: RunningServer, tmp_path: Path
) -> None:
    with pytest.raises(PeerUntrusted, match=r"is for localhost, 127.0.0.1, ::1, and it was called as 127.0.0.2"):
        await enroll(asked(authority, aggregator.ops_address, tmp_path / "box"))
    assert not (tmp_path / "box").exists()


async def test_the_address_for_certificates_is_said_to_be_the_wrong_one(
    authority: Authority, aggregator: RunningServer, tmp_path: Path
) -> None:
    with pytest.raises(PeerUnavailable, match="is that its --ops-listen address"):
        await enroll(asked(authority, aggregator.address, tmp_path / "box"))


def test_a_file_that_holds_no_words_is_named_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(SettingsInvalid, match=r"--token-file: cannot read .*token \(No such file"):
        read_secret(file, "--token-file")
    file.write_bytes(b"\xd0\xff secret")
    with pytest.raises(SettingsInvalid, match="holds no text") as raised:
        read_secret(file, "--token-file")
    assert "secret" not in raised.value.message
    file.write_text(" words \n")
    assert read_secret(file, "--token-file") == "words"
