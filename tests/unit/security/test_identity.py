"""What a certificate says of its holder."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fednano.errors import FieldInvalid, Unauthenticated
from fednano.security.identity import Role, identity_of, identity_uri, serial_hex

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])


def certificate(*uris: str) -> x509.Certificate:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(0xABC)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize("role", list(Role))
def test_a_certificate_names_a_role_and_an_id(role: Role) -> None:
    found = identity_of(certificate(identity_uri(role, "site-a")))
    assert (found.role, found.id, str(found), found.serial_hex) == (role, "site-a", f"{role}/site-a", "0abc")


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://fednano/client/a", "spiffe://fednano/operator/a"),
        ("spiffe://elsewhere/client/a",),
        ("spiffe://fednano/root/a",),
        ("spiffe://fednano/client/a/b",),
        ("spiffe://fednano/client/",),
        ("spiffe://fednano/client/A",),
        ("xspiffe://fednano/client/a",),
        ("spiffe://fednano/client/a\n",),
    ],
)
def test_anything_but_one_identity_is_nobody(uris: tuple[str, ...]) -> None:
    with pytest.raises(Unauthenticated, match="names nobody of a federation") as raised:
        identity_of(certificate(*uris))
    assert raised.value.facts == {"fault": "no_identity", "serial": "0abc"}


@pytest.mark.parametrize("wrong", ["", "Site", "a/b", "a b", "-a", "a" * 64, "a\n"])
def test_an_id_that_is_no_part_of_a_name_is_refused(wrong: str) -> None:
    with pytest.raises(FieldInvalid, match="is no id"):
        identity_uri(Role.CLIENT, wrong)


def test_a_serial_is_written_as_openssl_writes_it() -> None:
    assert (serial_hex(0xABCDEF), serial_hex(0xABC)) == ("abcdef", "0abc")
