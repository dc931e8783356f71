"""Giving new clients their certificates: one-time tokens from operators, certificates for who brings one."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from fednano.errors import AlreadyExists, FieldInvalid, JoinTokenRefused, SettingsInvalid
from fednano.names import RunName, check_id
from fednano.security.authority import Authority, issued, open_authority
from fednano.security.certificates import Subject, requested_key
from fednano.security.files import certificate_pem, parse_certificates, read_bytes
from fednano.security.identity import Role, identity_of
from fednano.security.join_token import JoinToken, fingerprint, is_token_id, token_sha256
from fednano.telemetry import get_logger
from fednano.v1 import enrollment_service_pb2 as pb
from services.aggregator.pages import Page
from services.aggregator.settings import AggregatorSettings
from services.aggregator.store.database import Store
from services.aggregator.store.join_tokens import (
    JoinTokenRow,
    find_token,
    insert_token,
    is_client_known,
    list_tokens,
    named_token,
    revoke_token,
    use_token,
)

log = get_logger("aggregator.enrollment")
DEFAULT_TTL_S = 3600.0
LONGEST_TTL_S = 30 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What a new client gets. The certificates are PEM."""

    client: str
    run: str
    certificate_chain: bytes


class Enrollment:
    """One aggregator's. Its methods block: they read and write files and the database."""

    def __init__(self, store: Store, authority: Authority, trusted: Sequence[x509.Certificate], days: float) -> None:
        self._store = store
        self._authority = authority
        self._trusted = trusted
        self._days = days

    @property
    def ca_certificates(self) -> bytes:
        """All that this aggregator trusts, in PEM; the one that vouches for it comes first."""
        return certificate_pem(*self._trusted)

    def create_token(self, run: str, client: str, ttl_s: float) -> tuple[JoinToken, float]:
        """A new token and when it expires, in Unix seconds. Raises FieldInvalid."""
        if run:
            RunName.parse(run, "run")
        if client:
            check_id(client, "client_id")
        ttl_s = ttl_s or DEFAULT_TTL_S
        if not 0 < ttl_s <= LONGEST_TTL_S:
            most = f"{LONGEST_TTL_S / 86400:g} days"
            raise FieldInvalid(f"ttl must be more than 0 and at most {most}, not {ttl_s / 86400:g} days", field="ttl")
        token, now_s = JoinToken.new(fingerprint(self._trusted[0])), time.time()
        row = JoinTokenRow(
            sha256=token.sha256, run=run, client=client, create_time_s=now_s, expire_time_s=now_s + ttl_s
        )
        with self._store.transaction() as connection:
            insert_token(connection, row)
        return token, row.expire_time_s

    def tokens(self, wanted: Page) -> tuple[list[pb.JoinToken], str]:
        """A page of what is known of all tokens, oldest first, and the next one's token. Raises FieldInvalid."""
        now_s = time.time()
        with self._store.transaction() as connection:
            found = list_tokens(connection, after=wanted.token, limit=wanted.size + 1)
        return wanted.cut([row.shown(now_s) for row in found], lambda token: token.id)

    def revoke_token(self, name: str) -> pb.JoinToken:
        """The token of that id, good for nothing any more. Raises FieldInvalid, ResourceNotFound, or JoinTokenRefused
        where it has enrolled somebody."""
        if not is_token_id(name):
            # Not repeated: it may be the secret itself.
            raise FieldInvalid("token_id must be an id that `fednano client token list` shows", field="token_id")
        now_s = time.time()
        with self._store.transaction() as connection:
            row = named_token(connection, name)
            if row.key_sha256:
                message = (
                    f"the join token {name} was used already, for {row.client}: `fednano certs revoke DIR client"
                    f" {row.client}` takes back what it gave"
                )
                raise JoinTokenRefused(message, fault="used")
            if row.state(now_s) == pb.JoinToken.STATE_UNUSED:
                revoke_token(connection, row.sha256, now_s)
            return named_token(connection, name).shown(now_s)

    def enroll(self, token: str, client: str, request_pem: str) -> Enrolled:
        """Raises JoinTokenRefused, FieldInvalid, or AlreadyExists where the client's id is another one's already."""
        request, now_s = request_pem.encode(), time.time()
        # Of no matter to who has no token, so looked at first: nothing is used up by a request that cannot be.
        key = requested_key(request).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        key_sha256 = hashlib.sha256(key).hexdigest()
        with self._store.transaction() as connection:
            row = _usable_token(connection, token, key_sha256, now_s)
            if row.key_sha256:
                return Enrolled(client=row.client, run=row.run, certificate_chain=row.certificate_chain)
            chosen = self._choose_id(connection, row, client, now_s)
            chain = self._sign(request, chosen)
            use_token(
                connection,
                row.sha256,
                client=chosen,
                key_sha256=key_sha256,
                certificate_chain=chain,
                time_s=now_s,
            )
        log.info("client_enrolled", client=chosen)
        return Enrolled(client=chosen, run=row.run, certificate_chain=chain)

    def _choose_id(self, connection: Connection, row: JoinTokenRow, client: str, now_s: float) -> str:
        """A token without a name never makes anybody into a client that is there already."""
        if row.client:
            if client not in ("", row.client):
                raise FieldInvalid(f"client_id: the token is for {row.client}, not for {client}", field="client_id")
            return row.client
        chosen = check_id(client, "client_id")
        if is_client_known(connection, chosen, now_s) or chosen in _issued_ids(self._authority.folder):
            raise AlreadyExists(
                f"there is a client {chosen} already: take another id, or ask for a token with --id {chosen}",
                name=chosen,
            )
        return chosen

    def _sign(self, request: bytes, client: str) -> bytes:
        """The client's certificate and, where the authority is an intermediate, that one's: not every service need
        know it."""
        certificate = self._authority.sign_request(request, Subject(role=Role.CLIENT, id=client), self._days)
        own = self._authority.certificate
        return certificate if own.issuer == own.subject else certificate + certificate_pem(own)


def open_enrollment(store: Store, settings: AggregatorSettings) -> Enrollment | None:
    """None where this aggregator was given no authority to sign with. Raises SettingsInvalid."""
    folder = settings.enroll_authority
    if folder is None:
        return None
    # The settings were refused otherwise.
    assert settings.tls_ca is not None
    assert settings.tls_cert is not None
    trusted = _read(settings.tls_ca, "--tls-ca")
    chain = _read(settings.tls_cert, "--tls-cert")
    authority = open_authority(folder)
    if not _is_trusted(authority.certificate, trusted):
        raise SettingsInvalid(
            f"--enroll-authority: nobody would trust what {folder} signs: its ca.crt is neither in --tls-ca nor issued"
            " by one that is"
        )
    # A new client trusts the first one for its first call.
    ordered = sorted(trusted, key=lambda one: not any(_has_issued(one, ours) for ours in chain))
    return Enrollment(store, authority, ordered, settings.enroll_days)


def _usable_token(connection: Connection, token: str, key_sha256: str, now_s: float) -> JoinTokenRow:
    """The token's row; used at most for this very key. Raises JoinTokenRefused."""
    row = find_token(connection, token_sha256(token.strip()))
    if row is None:
        message = "the join token is not known here: check that it is whole, and that this is the aggregator it is for"
        raise JoinTokenRefused(message, fault="unknown")
    if row.key_sha256 and row.key_sha256 != key_sha256:
        message = f"the join token was used already, for {row.client}: ask for a new one, and look into who used this"
        raise JoinTokenRefused(message, fault="used")
    state = row.state(now_s)
    if state == pb.JoinToken.STATE_REVOKED:
        raise JoinTokenRefused("the join token was withdrawn by an operator: ask for a new one", fault="revoked")
    if state == pb.JoinToken.STATE_EXPIRED:
        raise JoinTokenRefused("the join token has expired: ask for a new one", fault="expired")
    return row


def _issued_ids(folder: Path) -> set[str]:
    return {identity.id for identity in map(identity_of, issued(folder)) if identity.role == Role.CLIENT}


def _read(path: Path, flag: str) -> list[x509.Certificate]:
    return parse_certificates(read_bytes(path, flag), path, flag)


def _is_trusted(certificate: x509.Certificate, trusted: Sequence[x509.Certificate]) -> bool:
    return certificate in trusted or any(_has_issued(one, certificate) for one in trusted)


def _has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
