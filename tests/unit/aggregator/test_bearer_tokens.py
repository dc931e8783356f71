"""Bearer tokens: one of the issuer for this audience and in time, signed as the issuer signs; nothing else."""

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWKSet

from fednano.errors import SettingsInvalid, Unauthenticated
from fednano.security.authority import create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role
from services.aggregator.bearer_tokens import IssuerKeys, JwtVerifier, TokenTerms, open_verifier
from services.aggregator.settings import AggregatorSettings

ISSUER = "https://issuer.example"
KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
TERMS = TokenTerms(issuer=ISSUER, audience="fednano", role_claim="fednano_role")


def jwk(key: ec.EllipticCurvePrivateKey, key_id: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return described | {"kid": key_id, "alg": "ES256"}


def keys(*found: Mapping[str, Any]) -> PyJWKSet:
    return PyJWKSet.from_dict({"keys": list(found)})


@pytest.fixture
def verifier() -> JwtVerifier:
    return JwtVerifier(TERMS, IssuerKeys(lambda: keys(jwk(KEY, "one"))))


def claims(**changes: Any) -> dict[str, Any]:
    good = {"iss": ISSUER, "aud": "fednano", "sub": "ann", "exp": time.time() + 60, "fednano_role": "operator"}
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(said: Mapping[str, Any], key: Any = KEY, algorithm: str = "ES256", key_id: str = "one") -> str:
    return jwt.encode(dict(said), key, algorithm=algorithm, headers={"kid": key_id})


async def fault(verifier: JwtVerifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as raised:
        await verifier.verify(token, "ipv4:1")
    assert token not in raised.value.message
    return raised.value.facts["fault"]


@pytest.mark.parametrize(
    ("said", "role"),
    [("operator", "operator"), ("viewer", "viewer"), (["staff", "viewer"], "viewer"), ("viewer operator", "operator")],
)
async def test_a_good_token_makes_its_holder_what_the_claim_says(
    verifier: JwtVerifier, said: object, role: str
) -> None:
    caller = await verifier.verify(signed(claims(fednano_role=said)), "ipv4:1")
    assert (caller.role, caller.id, caller.proof) == (role, "ann", "token")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exp": time.time() - 60}, "expired"),
        # More than a day after: these are made when the tests are collected.
        ({"nbf": time.time() + 100_000}, "early"),
        ({"iss": "https://issuer.example.evil"}, "issuer"),
        ({"aud": "another"}, "audience"),
        ({"exp": None}, "claims"),
        ({"sub": None}, "claims"),
        ({"aud": None}, "claims"),
        ({"fednano_role": None}, "role"),
        ({"fednano_role": "client"}, "role"),
        ({"fednano_role": "aggregator"}, "role"),
        ({"fednano_role": {"operator": True}}, "role"),
    ],
)
async def test_a_claim_that_does_not_hold_is_named(
    verifier: JwtVerifier, changes: dict[str, object], expected: str
) -> None:
    assert await fault(verifier, signed(claims(**changes))) == expected


async def test_a_signature_of_another_key_is_refused(verifier: JwtVerifier) -> None:
    assert await fault(verifier, signed(claims(), OTHER_KEY)) == "signature"
    assert await fault(verifier, signed(claims(), OTHER_KEY, key_id="two")) == "key"


async def test_the_token_does_not_choose_how_it_is_verified(verifier: JwtVerifier) -> None:
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    # The oldest tricks: no signature, and the public key as a shared secret.
    unsigned = jwt.encode(claims(), None, algorithm="none", headers={"kid": "one"})
    head, body = _coded({"alg": "HS256", "kid": "one"}), _coded(claims())
    mac = base64.urlsafe_b64encode(hmac.digest(public, f"{head}.{body}".encode(), hashlib.sha256)).decode().rstrip("=")
    for token in (unsigned, f"{head}.{body}.{mac}"):
        assert await fault(verifier, token) == "malformed"


async def test_a_shared_secret_among_the_issuers_keys_verifies_nothing() -> None:
    secret = "s" * 32
    shared = {"kty": "oct", "k": base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="), "kid": "one"}
    verifier = JwtVerifier(TERMS, IssuerKeys(lambda: keys(shared | {"alg": "HS256"})))
    assert await fault(verifier, signed(claims(), secret, "HS256")) == "malformed"


async def test_what_is_no_token_is_refused(verifier: JwtVerifier) -> None:
    for words in ("x", "a.b.c", "é", "." * 100):
        assert await fault(verifier, words) == "malformed"


async def test_an_rsa_key_signs_as_well() -> None:
    key = rsa.generate_private_key(65537, 2048)
    described = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {"kid": "one", "alg": "RS256"}
    verifier = JwtVerifier(TERMS, IssuerKeys(lambda: keys(described)))
    assert (await verifier.verify(signed(claims(), key, "RS256"), "ipv4:1")).id == "ann"


async def test_a_new_key_of_the_issuer_is_found_and_strangers_make_no_traffic() -> None:
    fetched: list[float] = []
    now_s = 0.0

    def fetch() -> PyJWKSet:
        fetched.append(now_s)
        return keys(jwk(KEY, "one")) if now_s < 50 else keys(jwk(KEY, "one"), jwk(OTHER_KEY, "two"))

    found = JwtVerifier(TERMS, IssuerKeys(fetch, lambda: now_s))
    for _ in range(20):
        assert await fault(found, signed(claims(), OTHER_KEY, key_id="two")) == "key"
    assert len(fetched) == 1
    now_s = 60.0
    assert (await found.verify(signed(claims(), OTHER_KEY, key_id="two"), "ipv4:1")).id == "ann"
    assert len(fetched) == 2


async def test_keys_stay_good_while_the_issuer_is_away() -> None:
    now_s, is_away = 0.0, False

    def fetch() -> PyJWKSet:
        if is_away:
            raise OSError("no route")
        return keys(jwk(KEY, "one"))

    found = JwtVerifier(TERMS, IssuerKeys(fetch, lambda: now_s))
    await found.verify(signed(claims()), "ipv4:1")
    now_s, is_away = 1000.0, True
    assert (await found.verify(signed(claims()), "ipv4:1")).id == "ann"


def test_keys_come_only_over_a_way_that_nobody_changes(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"--oidc-jwks: http://issuer.example/keys is not https"):
        open_verifier(settings(tmp_path, oidc_jwks="http://issuer.example/keys"))
    with pytest.raises(SettingsInvalid, match=r"--oidc-issuer: issuer.example is not https"):
        open_verifier(settings(tmp_path, oidc_issuer="issuer.example"))
    with pytest.raises(SettingsInvalid, match="no file"):
        open_verifier(settings(tmp_path, oidc_jwks="absent.json"))


def settings(folder: Path, **changes: str) -> AggregatorSettings:
    files = {"tls_ca": folder / "ca", "tls_cert": folder / "crt", "tls_key": folder / "key"}
    said: dict[str, Any] = {"state": folder, "ops_listen": "127.0.0.1:0", "oidc_issuer": ISSUER, **files, **changes}
    return AggregatorSettings(**said)


def _coded(part: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


async def test_an_issuers_keys_are_found_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, _ = create_authority(tmp_path / "ca")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca/ca.crt"))
    holder = authority.issue(Subject(role=Role.SERVER, id="issuer"))
    with issuer_over_https(holder, {"/keys": {"keys": [jwk(KEY, "one")]}}) as issuer:
        verifier = open_verifier(settings(tmp_path, oidc_issuer=issuer))
        assert verifier is not None
        assert (await verifier.verify(signed(claims(iss=issuer)), "ipv4:1")).id == "ann"


@contextmanager
def issuer_over_https(holder: Path, pages: dict[str, object]) -> Iterator[str]:
    """An OpenID issuer that says where its keys are, and serves them there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            configuration = {"/.well-known/openid-configuration": {"issuer": issuer, "jwks_uri": f"{issuer}/keys"}}
            content = json.dumps((pages | configuration)[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(holder / "tls.crt", holder / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    issuer = f"https://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
