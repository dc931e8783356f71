"""The list of revoked certificates as a service keeps it."""

from pathlib import Path

import pytest

from fednano.errors import SettingsInvalid
from fednano.security.authority import Authority, create_authority, issued
from fednano.security.certificates import Subject
from fednano.security.identity import Role
from fednano.security.revocation import RevocationList


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority, _ = create_authority(tmp_path / "ca")
    authority.issue(Subject(role=Role.CLIENT, id="site-a"))
    return authority


def list_of(authority: Authority) -> RevocationList:
    return RevocationList(authority.folder / "ca.crl", authority.folder / "ca.crt")


def test_a_list_that_grows_is_read_again(authority: Authority) -> None:
    found = list_of(authority)
    (serial,) = [one.serial_number for one in issued(authority.folder)]
    assert not found.has(serial)
    assert not found.refresh()
    authority.revoke(Role.CLIENT, "site-a")
    assert found.refresh()
    assert found.has(serial)
    assert not found.refresh()


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", None]
)
def test_a_list_that_is_damaged_later_changes_nothing(authority: Authority, content: bytes | None) -> None:
    authority.revoke(Role.CLIENT, "site-a")
    found = list_of(authority)
    path = authority.folder / "ca.crl"
    path.unlink() if content is None else path.write_bytes(content)
    assert not found.refresh()
    assert found.has(issued(authority.folder)[0].serial_number)


def test_a_service_does_not_start_with_a_list_that_cannot_be_right(authority: Authority, tmp_path: Path) -> None:
    other, _ = create_authority(tmp_path / "other")
    for path, words in (
        (tmp_path / "none", "--tls-crl: cannot read"),
        (authority.folder / "ca.crt", "holds no revocation list"),
        (other.folder / "ca.crl", "not signed by the CA"),
    ):
        with pytest.raises(SettingsInvalid, match=words):
            RevocationList(path, authority.folder / "ca.crt")


def test_lists_of_two_authorities_make_one(authority: Authority, tmp_path: Path) -> None:
    other, _ = create_authority(tmp_path / "other")
    other.issue(Subject(role=Role.CLIENT, id="site-b"))
    other.revoke(Role.CLIENT, "site-b")
    authority.revoke(Role.CLIENT, "site-a")
    for name in ("ca.crt", "ca.crl"):
        parts = [(one.folder / name).read_bytes() for one in (authority, other)]
        (tmp_path / name).write_bytes(b"".join(parts))
    found = RevocationList(tmp_path / "ca.crl", tmp_path / "ca.crt")
    assert all(found.has(issued(one.folder)[0].serial_number) for one in (authority, other))
