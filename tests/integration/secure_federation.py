"""A real aggregator and a real LLM server with certificates, as processes, and callers of every kind."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from fednano.security.authority import Authority, create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role

START_S = 60.0
ISSUER = "https://issuer.example"
KEY_ID = "key-1"


@dataclass(frozen=True, kw_only=True)
class SecureFederation:
    """Where the services are, and what proves who one is."""

    folder: Path
    authority: Authority
    signing_key: ec.EllipticCurvePrivateKey
    # By "aggregator", "ops" and "server".
    addresses: Mapping[str, str]

    def holder(self, role: Role, holder_id: str) -> Path:
        """The folder with tls.key, tls.crt and ca.crt of somebody, made at the first time."""
        folder = self.authority.folder / f"{role}-{holder_id}"
        return folder if folder.exists() else self.authority.issue(Subject(role=role, id=holder_id))

    def certified(self, service: str, role: Role, holder_id: str) -> grpc.Channel:
        return grpc.secure_channel(self.addresses[service], tls(self.holder(role, holder_id)))

    def stranger(self, token: str = "") -> grpc.Channel:
        """To the aggregator's second address, with or without a bearer token."""
        credentials = grpc.ssl_channel_credentials((self.authority.folder / "ca.crt").read_bytes())
        if token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        return grpc.secure_channel(self.addresses["ops"], credentials)

    def token(self, role: str, **changes: object) -> str:
        """A bearer token that is good for a minute, but for the changes."""
        claims = {
            "iss": ISSUER,
            "aud": "fednano",
            "sub": f"{role}@example",
            "exp": int(time.time()) + 60,
            "fednano_role": role,
        }
        return jwt.encode(claims | changes, self.signing_key, algorithm="ES256", headers={"kid": KEY_ID})

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.jsonl"


@contextmanager
def secure_federation(
    folder: Path, *, with_server: bool = True, flags: tuple[str, ...] = (), hosts: tuple[str, ...] = ()
) -> Iterator[SecureFederation]:
    """Serves while the block runs. ``flags`` are further ones of the aggregator, ``hosts`` names of both services."""
    authority, _ = create_authority(folder / "certs")
    key = ec.generate_private_key(ec.SECP256R1())
    jwks = folder / "jwks.json"
    jwks.write_text(f'{{"keys": [{_public_jwk(key)}]}}')
    listen, ops = _free_address(), _free_address()
    aggregator = ["--state", str(folder / "state"), "--listen", listen, "--ops-listen", ops]
    aggregator += ["--enroll-authority", str(authority.folder), "--audit-log", str(folder / "audit.jsonl")]
    aggregator += ["--oidc-issuer", ISSUER, "--oidc-jwks", str(jwks), *flags]
    parts = {"aggregator": (Role.AGGREGATOR, aggregator)}
    if with_server:
        parts["server"] = (Role.SERVER, ["--listen", "127.0.0.1:0", "--batching", "off"])
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, (role, arguments) in parts.items():
            started[name] = _start(name, folder, authority.issue(Subject(role=role, id=name, hosts=hosts)), arguments)
        addresses = {name: _address(name, folder, process) for name, process in started.items()}
        yield SecureFederation(folder=folder, authority=authority, signing_key=key, addresses=addresses | {"ops": ops})
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait(timeout=60)


def tls(folder: Path) -> grpc.ChannelCredentials:
    ca, key, certificate = ((folder / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _start(name: str, folder: Path, holder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    files = [
        f"--tls-{kind}={holder / file}" for kind, file in (("ca", "ca.crt"), ("cert", "tls.crt"), ("key", "tls.key"))
    ]
    command = [sys.executable, "-m", f"services.{name}", *files, "--ready-file", str(folder / f"{name}.ready")]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([*command, *arguments], stderr=log)


def _address(name: str, folder: Path, process: subprocess.Popen[bytes]) -> str:
    ready, deadline_s = folder / f"{name}.ready", time.monotonic() + START_S
    while not ready.exists():
        assert process.poll() is None, (folder / f"{name}.log").read_text()
        assert time.monotonic() < deadline_s, f"{name} does not start"
        time.sleep(0.05)
    return ready.read_text()


def _free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def _public_jwk(key: ec.EllipticCurvePrivateKey) -> str:
    described = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())
    return described.removesuffix("}") + f', "kid": "{KEY_ID}", "alg": "ES256", "use": "sig"}}'
