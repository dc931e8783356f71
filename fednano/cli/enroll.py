"""Making this machine a client: a key that never leaves it, a certificate for a join token, and settings."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fednano.cli.operator import explained
from fednano.errors import NoProgress, PeerUnavailable, PeerUntrusted, SettingsInvalid
from fednano.rpc.ops_channel import open_ops_channel
from fednano.rpc.retry import call_with_retry
from fednano.rpc.tunnel import connect
from fednano.security.certificates import hosts_of, new_key, new_request
from fednano.security.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    PrivateKey,
    is_pair,
    key_pem,
    parse_key,
    read_bytes,
    write_atomically,
)
from fednano.security.join_token import JoinToken, fingerprint
from fednano.v1 import enrollment_service_pb2 as pb
from fednano.v1.enrollment_service_pb2_grpc import EnrollmentServiceStub

CALL_TIMEOUT_S = 10.0
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Enrolling:
    """What is asked for. ``aggregator`` is its address for callers without a certificate."""

    token: JoinToken
    aggregator: str
    client_id: str
    out: Path
    server: str = ""
    examples: Path | None = None
    patience_s: float = 10.0

    @property
    def peer(self) -> str:
        return f"the aggregator at {self.aggregator}"


async def enroll(asked: Enrolling) -> pb.EnrollResponse:
    """Writes tls.key, tls.crt, ca.crt and client.env. The same call again, after a failure, goes on with the same key.

    Raises SettingsInvalid where the folder has a certificate already, or the aggregator is not the token's.
    """
    if (asked.out / "tls.crt").exists():
        raise SettingsInvalid(f"--out: {asked.out} has a certificate already: take another folder, or remove this one")
    authority = await _authority(asked)
    key = _key(asked.out / "tls.key")
    request = pb.EnrollRequest(
        token=str(asked.token), client_id=asked.client_id, certificate_request=new_request(key).decode()
    )
    async with open_ops_channel(asked.aggregator, authority) as channel:
        enrolled = await _call(
            asked, "enrol", lambda: EnrollmentServiceStub(channel).Enroll(request, timeout=CALL_TIMEOUT_S)
        )
    _check(enrolled, key, asked)
    write_atomically(asked.out / "ca.crt", enrolled.ca_certificates.encode(), PUBLIC_MODE)
    write_atomically(asked.out / "client.env", client_settings(asked, enrolled).encode(), PUBLIC_MODE)
    # Last: where it is, all is.
    write_atomically(asked.out / "tls.crt", enrolled.certificate_chain.encode(), PUBLIC_MODE)
    return enrolled


def client_settings(asked: Enrolling, enrolled: pb.EnrollResponse) -> str:
    """The settings of ``services.client`` as an environment file, for a shell, systemd or a container."""
    host = asked.aggregator.rpartition(":")[0]
    folder = asked.out.resolve()
    known = {
        "CLIENT_ID": enrolled.client_id,
        "RUN": enrolled.run,
        "AGGREGATOR": host + enrolled.aggregator if enrolled.aggregator.startswith(":") else enrolled.aggregator,
        "TLS_CA": str(folder / "ca.crt"),
        "TLS_CERT": str(folder / "tls.crt"),
        "TLS_KEY": str(folder / "tls.key"),
        "STATE": str(folder / "state"),
        "SERVER": asked.server,
        "EXAMPLES": str(asked.examples.resolve()) if asked.examples else "",
    }
    to_fill_in = {"SERVER": "host:port of the LLM server", "EXAMPLES": "folder of the examples"}
    lines = [f"FEDNANO_{name}={value}" for name, value in known.items() if value]
    lines += [f"# {words}\n#FEDNANO_{name}=" for name, words in to_fill_in.items() if not known[name]]
    return "\n".join(lines) + "\n"


async def _authority(asked: Enrolling) -> bytes:
    """The CA certificate whose digest the token has, in PEM, asked from the aggregator, which is not trusted for it."""
    host, _, port = asked.aggregator.rpartition(":")
    shown = await asyncio.to_thread(_shown_certificate, host.strip("[]"), int(port), asked)
    # Whoever shows this certificate may say what it likes: no secret goes there, and the digest decides.
    async with open_ops_channel(asked.aggregator, shown.encode()) as channel:
        stub = EnrollmentServiceStub(channel)
        try:
            answer = await _call(
                asked, "get the CA", lambda: stub.GetAuthority(pb.GetAuthorityRequest(), timeout=CALL_TIMEOUT_S)
            )
        except PeerUnavailable as error:
            raise _wrong_host(error, shown, host, asked) or error from None
    for certificate in _certificates(answer.ca_certificates, asked):
        if fingerprint(certificate) == asked.token.ca_sha256:
            return certificate.public_bytes(Encoding.PEM)
    raise SettingsInvalid(
        f"{asked.peer} is not the one that the token is for: its CA has another digest. Check the address; where it is"
        " right, somebody is between you and the aggregator. Nothing secret was sent"
    )


def _shown_certificate(host: str, port: int, asked: Enrolling) -> str:
    """What the other end shows of itself, unverified."""
    try:
        return _certificate_at_the_end(connect((host, port), asked.patience_s), host)
    except TimeoutError:
        raise PeerUnavailable(f"{asked.peer} does not answer within {asked.patience_s:g} s", peer=asked.peer) from None
    except OSError as error:
        words = f"{asked.peer} does not answer ({error.strerror or error}); is that its --ops-listen address?"
        raise PeerUnavailable(words, peer=asked.peer) from None


def _certificate_at_the_end(plain: socket.socket, host: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with plain, context.wrap_socket(plain, server_hostname=host) as wrapped:
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"")


async def _call(asked: Enrolling, what: str, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    try:
        return await call_with_retry(call, peer=asked.peer, what=what, give_up_after_s=asked.patience_s)
    except (PeerUnavailable, NoProgress) as error:
        if "code" not in error.facts:
            raise
        why = explained(error, asked.peer).message.partition("; check that")[0]
        words = f"{why}; is that its --ops-listen address? The one of --listen takes nobody without a certificate"
        raise PeerUnavailable(words, peer=asked.peer) from None


def _wrong_host(error: PeerUnavailable, shown_pem: str, host: str, asked: Enrolling) -> PeerUntrusted | None:
    if "Hostname Verification" not in error.message:
        return None
    names = ", ".join(hosts_of(x509.load_pem_x509_certificate(shown_pem.encode()))) or "no host at all"
    return PeerUntrusted(
        f"{asked.peer}: its certificate is for {names}, and it was called as {host}: call it by one of those names, or"
        f" issue it with `fednano certs issue ... --host {host}`",
        peer=asked.peer,
        fault="wrong_host",
    )


def _key(path: Path) -> PrivateKey:
    """A new key, or that of an enrolment that broke off: the token may be used up for it already."""
    if path.exists():
        return parse_key(read_bytes(path, "--out"), path, "--out")
    key = new_key()
    write_atomically(path, key_pem(key), SECRET_MODE)
    return key


def _check(enrolled: pb.EnrollResponse, key: PrivateKey, asked: Enrolling) -> None:
    """What is written here is used for a long time."""
    if not is_pair(_certificates(enrolled.certificate_chain, asked)[0], key):
        raise SettingsInvalid(f"{asked.peer} answered with a certificate for another key")
    if asked.token.ca_sha256 not in [fingerprint(one) for one in _certificates(enrolled.ca_certificates, asked)]:
        raise SettingsInvalid(f"{asked.peer} answered without the CA that the token names")


def _certificates(pem: str, asked: Enrolling) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise SettingsInvalid(f"{asked.peer} answered with what is no certificate") from None
