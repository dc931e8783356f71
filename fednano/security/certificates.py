"""What our certificates are: EC P-256, the identity as URI, names to be called by, and no more rights than needed."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fednano.errors import FieldInvalid
from fednano.security.files import PrivateKey
from fednano.security.identity import Role, identity_uri, serial_hex

AUTHORITY_DAYS = 3650
LEAF_DAYS = 90
# A certificate is good from a little before it is made, for clocks that go after.
SKEW = timedelta(minutes=5)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Those who listen: services, and a client, whose port serves its health to its own machine.
LISTENING = (Role.SERVER, Role.AGGREGATOR, Role.CLIENT)
LEAST_RSA_BITS = 2048


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whom a certificate is for. ``hosts`` are the names and addresses that a service is called by."""

    role: Role
    id: str
    hosts: tuple[str, ...] = ()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(key: PrivateKey, days: int) -> x509.Certificate:
    """A CA's certificate of its own making. Its name is unlike any other's, so that two CAs are told apart."""
    serial = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "FedNano"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"FedNano CA {serial_hex(serial)[:8]}"),
        ]
    )
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), serial, now - SKEW, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def new_certificate(
    subject: Subject,
    public_key: CertificatePublicKeyTypes,
    authority: x509.Certificate,
    authority_key: PrivateKey,
    days: float,
) -> x509.Certificate:
    """Never good for longer than its authority. Raises FieldInvalid for an id or a host that cannot be."""
    now = datetime.now(UTC)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if subject.role in LISTENING:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = x509.CertificateBuilder(
        issuer_name=authority.subject,
        subject_name=_name(subject),
        public_key=public_key,
        serial_number=x509.random_serial_number(),
        not_valid_before=max(now - SKEW, authority.not_valid_before_utc),
        not_valid_after=min(now + timedelta(days=days), authority.not_valid_after_utc),
    )
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(subject)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_issued_by(authority), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def new_request(key: PrivateKey) -> bytes:
    """A PKCS #10 request in PEM that says nothing but the key: who asks is told otherwise."""
    return x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def requested_key(request_pem: bytes) -> CertificatePublicKeyTypes:
    """The public key of a request whose sender has the private one. Raises FieldInvalid."""
    field = "certificate_request"
    try:
        request = x509.load_pem_x509_csr(request_pem)
        is_signed = request.is_signature_valid
    except ValueError:
        raise FieldInvalid(f"{field}: no PKCS #10 request in PEM", field=field) from None
    if not is_signed:
        raise FieldInvalid(f"{field}: its signature is not of its own key", field=field)
    key = request.public_key()
    is_ec = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    if is_ec or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS):
        return key
    raise FieldInvalid(f"{field}: the key must be EC P-256 or P-384, or RSA of {LEAST_RSA_BITS} bits", field=field)


def all_hosts(subject: Subject) -> tuple[str, ...]:
    """Whoever listens can also be called from its own machine, by the health check of a container for one."""
    hosts = (*subject.hosts, *LOOPBACK) if subject.role in LISTENING else subject.hosts
    return tuple(dict.fromkeys(str(_host(host).value) for host in hosts))


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses that the certificate is good for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _name(subject: Subject) -> x509.Name:
    """For people: what counts is the URI, which may be longer than a common name."""
    parts = {
        NameOID.ORGANIZATION_NAME: "FedNano",
        NameOID.ORGANIZATIONAL_UNIT_NAME: subject.role,
        NameOID.COMMON_NAME: subject.id,
    }
    return x509.Name([x509.NameAttribute(kind, str(text)) for kind, text in parts.items()])


def _alternative_names(subject: Subject) -> list[x509.GeneralName]:
    uri = x509.UniformResourceIdentifier(identity_uri(subject.role, subject.id))
    return [uri, *(_host(host) for host in all_hosts(subject))]


def _host(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    if len(host) > 253 or not all(_is_label(label) for label in labels):
        raise FieldInvalid(
            f"--host: {host!r} is neither a name nor an address, such as server.example.org", field="host"
        )
    return x509.DNSName(host.lower())


def _is_label(label: str) -> bool:
    return 0 < len(label) < 64 and label.isascii() and label.replace("-", "").replace("_", "").isalnum()


def _issued_by(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
