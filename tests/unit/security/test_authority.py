"""What an authority makes, keeps and takes back."""

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fednano.errors import FieldInvalid, ResourceNotFound, SettingsInvalid
from fednano.security.authority import Authority, create_authority, issued, open_authority, read_certificate
from fednano.security.certificates import Subject, hosts_of, new_key, new_request
from fednano.security.files import is_pair, parse_key
from fednano.security.identity import Role, identity_of
from fednano.security.inspection import inspect, is_issued_by

SITE = Subject(role=Role.CLIENT, id="site-a")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "ca")[0]


def usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def days_left(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def test_an_authority_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    first, was_new = create_authority(tmp_path)
    second, is_new = create_authority(tmp_path, days=1)
    assert (was_new, is_new) == (True, False)
    assert first.certificate == second.certificate
    assert 3649 < days_left(second.certificate) <= 3650


def test_of_many_who_make_it_at_one_time_one_does(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_authority(tmp_path), range(8)))
    assert [is_new for _, is_new in made].count(True) == 1
    assert len({authority.certificate.serial_number for authority, _ in made}) == 1


@pytest.mark.parametrize("missing", ["ca.crt", "ca.key"])
def test_half_an_authority_is_refused_and_not_overwritten(authority: Authority, missing: str) -> None:
    (authority.folder / missing).unlink()
    with pytest.raises(SettingsInvalid, match="not the other half"):
        create_authority(authority.folder)


def test_a_key_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    other, _ = create_authority(tmp_path / "other")
    (authority.folder / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(SettingsInvalid, match="is not the key of"):
        open_authority(authority.folder)


def test_nobody_else_may_read_a_key(authority: Authority) -> None:
    folder = authority.issue(SITE)
    for key in (authority.folder / "ca.key", folder / "tls.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_service_is_called_by_its_hosts_and_on_its_own_machine(authority: Authority) -> None:
    subject = Subject(role=Role.SERVER, id="s", hosts=("Server.example.org", "10.0.0.5"))
    certificate = read_certificate(authority.issue(subject) / "tls.crt")
    assert hosts_of(certificate) == ["server.example.org", "localhost", "10.0.0.5", "127.0.0.1", "::1"]
    assert usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    assert str(identity_of(certificate)) == "server/s"
    assert 89.9 < days_left(certificate) <= 90


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.VIEWER])
def test_people_cannot_pose_as_a_service(authority: Authority, role: Role) -> None:
    certificate = read_certificate(authority.issue(Subject(role=role, id="ada")) / "tls.crt")
    assert usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert hosts_of(certificate) == []


def test_a_certificate_ends_with_its_authority(tmp_path: Path) -> None:
    authority, _ = create_authority(tmp_path, days=10)
    assert days_left(read_certificate(authority.issue(SITE, days=90) / "tls.crt")) <= 10


@pytest.mark.parametrize("host", ["", "a b", "a..b", "https://a", "a:7000", "x" * 64, "ä.example"])
def test_what_is_no_host_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(FieldInvalid, match="neither a name nor an address"):
        authority.issue(Subject(role=Role.SERVER, id="s", hosts=(host,)))
    assert issued(authority.folder) == []


def test_issuing_again_is_the_same_identity_with_another_key(authority: Authority) -> None:
    folder = authority.issue(SITE)
    first, first_key = read_certificate(folder / "tls.crt"), (folder / "tls.key").read_bytes()
    authority.issue(SITE)
    second, second_key = read_certificate(folder / "tls.crt"), (folder / "tls.key").read_bytes()
    assert str(identity_of(first)) == str(identity_of(second))
    assert first.serial_number != second.serial_number
    assert first_key != second_key
    assert is_pair(second, parse_key(second_key, folder, ""))


def test_a_request_is_signed_for_whom_the_authority_says_not_for_whom_it_says_itself(authority: Authority) -> None:
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "operator/root")])
    wish = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://fednano/operator/root")])
    request = x509.CertificateSigningRequestBuilder(name).add_extension(wish, critical=False)
    pem = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    certificate = x509.load_pem_x509_certificate(authority.sign_request(pem, SITE, days=7))
    assert str(identity_of(certificate)) == "client/site-a"
    assert is_pair(certificate, key)
    assert is_issued_by(certificate, authority.certificate)
    assert days_left(certificate) <= 7


def test_a_request_without_a_name_is_enough(authority: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.sign_request(new_request(new_key()), SITE))
    assert identity_of(certificate).id == "site-a"


def test_a_request_that_nobody_can_answer_for_is_refused(authority: Authority) -> None:
    damaged = bytearray(_der(new_request(new_key())))
    damaged[-1] ^= 1
    for request, words in (
        (b"nothing", "no PKCS #10"),
        (x509.load_der_x509_csr(bytes(damaged)).public_bytes(Encoding.PEM), "not of its own key"),
        (_ed25519_request(), "EC P-256"),
    ):
        with pytest.raises(FieldInvalid, match=words):
            authority.sign_request(request, SITE)
    assert issued(authority.folder) == []


def test_revoking_takes_all_that_somebody_has_or_one(authority: Authority) -> None:
    for subject in (SITE, SITE, SITE, Subject(role=Role.CLIENT, id="site-b")):
        authority.issue(subject)
    serials = [one.serial_number for one in issued(authority.folder) if identity_of(one).id == "site-a"]
    assert authority.revoke(Role.CLIENT, "site-a", serials[0]) == serials[:1]
    assert sorted(authority.revoke(Role.CLIENT, "site-a")) == sorted(serials[1:])
    assert authority.revoke(Role.CLIENT, "site-a") == []
    assert set(authority.revoked()) == set(serials)
    states = [inspect(one, authority.certificate, authority.revoked()).state for one in issued(authority.folder)]
    assert sorted(states) == ["revoked"] * 3 + ["valid"]


def test_what_was_never_issued_cannot_be_revoked(authority: Authority) -> None:
    authority.issue(SITE)
    with pytest.raises(ResourceNotFound, match="never issued"):
        authority.revoke(Role.OPERATOR, "site-a")


def test_two_who_revoke_at_one_time_both_do(authority: Authority) -> None:
    names = [f"site-{number}" for number in range(12)]
    for name in names:
        authority.issue(Subject(role=Role.CLIENT, id=name))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: open_authority(authority.folder).revoke(Role.CLIENT, name), names))
    assert len(authority.revoked()) == 12


def _der(request_pem: bytes) -> bytes:
    return x509.load_pem_x509_csr(request_pem).public_bytes(Encoding.DER)


def _ed25519_request() -> bytes:
    request = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return request.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM)
