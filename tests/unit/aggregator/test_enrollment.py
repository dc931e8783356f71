"""Enrolment: whose signature a client gets, for how long, and what two at once get."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder
from cryptography.x509.verification import Store as TrustStore

from fednano.errors import FieldInvalid, JoinTokenRefused, SettingsInvalid
from fednano.security.authority import create_authority, open_authority
from fednano.security.certificates import Subject, new_key, new_request
from fednano.security.files import certificate_pem, key_pem
from fednano.security.identity import Role, identity_of
from fednano.security.join_token import JoinToken, fingerprint
from fednano.security.revocation import RevocationList
from services.aggregator.enrollment import Enrollment, open_enrollment
from services.aggregator.settings import AggregatorSettings
from services.aggregator.store.database import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'fednano.sqlite3'}")
    yield opened
    opened.close()


def settings(folder: Path, **changes: Any) -> AggregatorSettings:
    """Of an aggregator whose certificate is of the authority in ``folder``."""
    authority, _ = create_authority(folder)
    ours = authority.issue(Subject(role=Role.AGGREGATOR, id="ours"))
    files = {"tls_ca": ours / "ca.crt", "tls_cert": ours / "tls.crt", "tls_key": ours / "tls.key"}
    given = {"state": folder, "ops_listen": "127.0.0.1:0", "client_address": "a:1", "enroll_authority": folder, **files}
    return AggregatorSettings(**(given | changes))


def opened(store: Store, given: AggregatorSettings) -> Enrollment:
    enrollment = open_enrollment(store, given)
    assert enrollment is not None
    return enrollment


def enroll(enrollment: Enrollment, client: str = "box", key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    token, _ = enrollment.create_token("", client, 60.0)
    return enrollment.enroll(str(token), "", new_request(key or new_key()).decode()).certificate_chain


def test_a_certificate_is_the_clients_and_lasts_as_long_as_was_set(store: Store, tmp_path: Path) -> None:
    chain = enroll(opened(store, settings(tmp_path / "ca", enroll_days=7)))
    (certificate,) = x509.load_pem_x509_certificates(chain)
    assert str(identity_of(certificate)) == "client/box"
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < left <= timedelta(days=7)


def test_what_the_request_asks_beside_its_key_is_not_heard(store: Store, tmp_path: Path) -> None:
    """A request that names an operator and wants to sign others."""
    enrollment, key = opened(store, settings(tmp_path / "ca")), new_key()
    uri = x509.UniformResourceIdentifier("spiffe://fednano/operator/eve")
    request = (
        x509.CertificateSigningRequestBuilder(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([uri, x509.DNSName("aggregator.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    token, _ = enrollment.create_token("", "box", 60.0)
    pem = request.public_bytes(Encoding.PEM).decode()
    (certificate,) = x509.load_pem_x509_certificates(enrollment.enroll(str(token), "", pem).certificate_chain)
    assert str(identity_of(certificate)) == "client/box"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert b"aggregator.example" not in certificate.public_bytes(Encoding.DER)


def test_an_intermediate_signs_and_goes_along(store: Store, tmp_path: Path) -> None:
    root, root_key = root_authority()
    intermediate(tmp_path / "between", root_key)
    ours = create_authority(tmp_path / "ca")[0].issue(Subject(role=Role.AGGREGATOR, id="ours"))
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes((ours / "ca.crt").read_bytes() + certificate_pem(root))
    given = settings(tmp_path / "ca", tls_ca=trusted, enroll_authority=tmp_path / "between")
    leaf, between = x509.load_pem_x509_certificates(enroll(opened(store, given)))
    PolicyBuilder().store(TrustStore([root])).build_client_verifier().verify(leaf, [between])


def test_what_an_intermediate_signed_is_revoked_by_its_own_list(store: Store, tmp_path: Path) -> None:
    """As docs/security.md says it is done: its ca.crt beside the root's on every service."""
    root, root_key = root_authority()
    intermediate(tmp_path / "between", root_key)
    between = open_authority(tmp_path / "between")
    (tmp_path / "root.crt").write_bytes(certificate_pem(root))
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(certificate_pem(root, between.certificate))
    given = settings(tmp_path / "ca", tls_ca=trusted, enroll_authority=tmp_path / "between")
    # A service that has the root alone still sees the whole chain.
    leaf, along = x509.load_pem_x509_certificates(enroll(opened(store, given)))
    assert along == between.certificate
    (serial,) = between.revoke(Role.CLIENT, "box")
    assert RevocationList(tmp_path / "between/ca.crl", trusted).has(leaf.serial_number)
    assert serial == leaf.serial_number
    with pytest.raises(SettingsInvalid, match=r"for an intermediate's list its ca\.crt"):
        RevocationList(tmp_path / "between/ca.crl", tmp_path / "root.crt")


def test_an_authority_that_nobody_trusts_is_refused_at_the_start(store: Store, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    with pytest.raises(SettingsInvalid, match="nobody would trust"):
        open_enrollment(store, settings(tmp_path / "ca", enroll_authority=tmp_path / "other"))


def test_the_token_names_the_ca_that_vouches_for_the_aggregator(store: Store, tmp_path: Path) -> None:
    """Also while a bundle holds the former CA, which comes first."""
    given = settings(tmp_path / "ca")
    former, _ = create_authority(tmp_path / "former")
    ours, _ = create_authority(tmp_path / "ca")
    bundle = tmp_path / "bundle.crt"
    bundle.write_bytes(certificate_pem(former.certificate, ours.certificate))
    token, _ = opened(store, given.model_copy(update={"tls_ca": bundle})).create_token("", "", 60.0)
    assert JoinToken.parse(str(token)).ca_sha256 == fingerprint(ours.certificate)


def test_of_two_at_once_with_one_token_one_is_enrolled(store: Store, tmp_path: Path) -> None:
    enrollment = opened(store, settings(tmp_path / "ca"))
    token, _ = enrollment.create_token("", "", 60.0)

    def attempt(number: int) -> str:
        try:
            return enrollment.enroll(str(token), f"box-{number}", new_request(new_key()).decode()).client
        except JoinTokenRefused as refusal:
            return refusal.facts["fault"]

    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(attempt, range(8)))
    assert found[0].startswith("box-")
    assert found[1:] == ["used"] * 7


@pytest.mark.parametrize(("run", "client", "ttl_s"), [("demo", "", 60), ("", "A b", 60), ("", "", -1), ("", "", 1e9)])
def test_a_token_for_what_cannot_be_is_refused(
    store: Store, tmp_path: Path, run: str, client: str, ttl_s: float
) -> None:
    with pytest.raises(FieldInvalid):
        opened(store, settings(tmp_path / "ca")).create_token(run, client, ttl_s)


def root_authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = new_key()
    return signed_authority("root", key, "root", key), key


def intermediate(folder: Path, root_key: ec.EllipticCurvePrivateKey) -> None:
    """A folder as `certs init` makes it, of an authority that the root vouches for."""
    key = new_key()
    folder.mkdir()
    (folder / "ca.key").write_bytes(key_pem(key))
    (folder / "ca.crt").write_bytes(certificate_pem(signed_authority("between", key, "root", root_key)))


def signed_authority(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now, day = datetime.now(UTC), timedelta(days=1)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder(named(issuer), named(name), key.public_key(), 1 + len(name), now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
