"""Operators' bearer tokens: JSON web tokens of one issuer, verified by PyJWT with the issuer's published keys."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from jwt import PyJWK, PyJWKClient, PyJWKSet

from fednano.errors import SettingsInvalid, Unauthenticated
from fednano.rpc.callers import Caller
from fednano.security.identity import Role
from fednano.telemetry import get_logger
from services.aggregator.settings import AggregatorSettings

log = get_logger("aggregator.bearer")
# Signatures alone: a key that verifies is never one that signs. What the token's header says decides nothing else.
ALGORITHMS = ("ES256", "ES384", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA")
REQUIRED = ("exp", "iss", "aud", "sub")
# What a bearer token may make of its holder, the most powerful first; services and clients have certificates.
ROLES = (Role.OPERATOR, Role.VIEWER)
LEEWAY_S = 30.0
FETCH_TIMEOUT_S = 5.0
KEYS_LIFE_S = 300.0
# Any stranger can name a key that is not there: the issuer is not asked for it each time.
LEAST_REFRESH_S = 10.0
MAX_LETTERS = 128


@dataclass(frozen=True, kw_only=True)
class TokenTerms:
    """What a bearer token must say to be one of ours."""

    issuer: str
    audience: str
    role_claim: str


class IssuerKeys:
    """The issuer's keys, kept for minutes, and fetched again when a token names one that is not among them."""

    def __init__(self, fetch: Callable[[], PyJWKSet], clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: Mapping[str, PyJWK] = {}
        self._fetched_s: float | None = None
        self._turn = asyncio.Lock()

    async def key(self, key_id: str) -> PyJWK:
        """Raises Unauthenticated."""
        async with self._turn:
            age_s = None if self._fetched_s is None else self._clock() - self._fetched_s
            is_missing = key_id not in self._keys and (age_s is None or age_s >= LEAST_REFRESH_S)
            if age_s is None or age_s >= KEYS_LIFE_S or is_missing:
                await self._refresh()
        if key_id not in self._keys:
            raise Unauthenticated("the bearer token is signed by no key of the issuer", fault="key")
        return self._keys[key_id]

    async def _refresh(self) -> None:
        self._fetched_s = self._clock()
        try:
            found = await asyncio.to_thread(self._fetch)
        except (jwt.PyJWTError, OSError, ValueError) as error:
            # The keys that are known stay good.
            log.error("issuer_keys_unreachable", why=str(error)[:200])
            return
        self._keys = {key.key_id: key for key in found.keys if key.key_id}


class JwtVerifier:
    """Takes a token whose signature, issuer, audience and times hold and whose role claim names an operator's role."""

    def __init__(self, terms: TokenTerms, keys: IssuerKeys) -> None:
        self._terms = terms
        self._keys = keys

    async def verify(self, token: str, address: str) -> Caller:
        """Raises Unauthenticated, without a word of the token."""
        key = await self._keys.key(_key_id(token))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[name for name in ALGORITHMS if name == key.algorithm_name],
                issuer=self._terms.issuer,
                audience=self._terms.audience,
                leeway=LEEWAY_S,
                options={"require": list(REQUIRED)},
            )
        except jwt.PyJWTError as error:
            raise _refusal(error) from None
        return Caller(
            role=_role(claims, self._terms.role_claim),
            id=str(claims["sub"])[:MAX_LETTERS],
            address=address,
            proof="token",
            good_for_s=max(0.0, float(claims["exp"]) + LEEWAY_S - time.time()),
        )


def open_verifier(settings: AggregatorSettings) -> JwtVerifier | None:
    """None where no issuer was given. Raises SettingsInvalid; a URL is only asked when the first token comes."""
    if not settings.oidc_issuer:
        return None
    terms = TokenTerms(
        issuer=settings.oidc_issuer, audience=settings.oidc_audience, role_claim=settings.oidc_role_claim
    )
    return JwtVerifier(terms, IssuerKeys(_fetcher(settings.oidc_issuer, settings.oidc_jwks)))


def _fetcher(issuer: str, jwks: str) -> Callable[[], PyJWKSet]:
    if jwks and "://" not in jwks:
        file = Path(jwks)
        if not file.is_file():
            raise SettingsInvalid(f"--oidc-jwks: there is no file {file}")
        return lambda: PyJWKSet.from_json(file.read_text())
    for flag, url in (("--oidc-jwks", jwks), ("--oidc-issuer", issuer if not jwks else "")):
        if url and not url.startswith("https://"):
            raise SettingsInvalid(f"{flag}: {url} is not https: whoever changes the keys on their way makes operators")
    return lambda: _client(jwks or _discovered(issuer)).get_jwk_set(refresh=True)


def _discovered(issuer: str) -> str:
    """Where the issuer's OpenID configuration says that its keys are."""
    found = _client(issuer.rstrip("/") + "/.well-known/openid-configuration").fetch_data()
    uri = found.get("jwks_uri", "") if isinstance(found, dict) else ""
    if not str(uri).startswith("https://"):
        raise ValueError(f"{issuer} names no https jwks_uri")
    return str(uri)


def _client(url: str) -> PyJWKClient:
    # Kept here, not there: it would ask again for each key that it does not know.
    return PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_TIMEOUT_S)


def _key_id(token: str) -> str:
    try:
        return str(jwt.get_unverified_header(token).get("kid", ""))
    except jwt.PyJWTError:
        raise Unauthenticated("the bearer token is no JSON web token", fault="malformed") from None


def _role(claims: Mapping[str, Any], claim: str) -> Role:
    said = claims.get(claim, ())
    names = said.split() if isinstance(said, str) else said if isinstance(said, list) else ()
    for role in ROLES:
        if role in names:
            return role
    raise Unauthenticated(
        f"the bearer token's claim {claim} names no role: it needs one of {', '.join(ROLES)}", fault="role"
    )


def _refusal(error: jwt.PyJWTError) -> Unauthenticated:
    faults: tuple[tuple[type[jwt.PyJWTError], str, str], ...] = (
        (jwt.ExpiredSignatureError, "expired", "has expired: get a new one"),
        (jwt.ImmatureSignatureError, "early", "is not good yet: look at the clocks of both machines"),
        (jwt.InvalidIssuerError, "issuer", "is of another issuer"),
        (jwt.InvalidAudienceError, "audience", "is for another audience"),
        (jwt.MissingRequiredClaimError, "claims", f"lacks one of the claims {', '.join(REQUIRED)}"),
        (jwt.InvalidSignatureError, "signature", "is not signed by the key that it names"),
    )
    for kind, fault, words in faults:
        if isinstance(error, kind):
            return Unauthenticated(f"the bearer token {words}", fault=fault)
    return Unauthenticated("the bearer token cannot be verified", fault="malformed")
