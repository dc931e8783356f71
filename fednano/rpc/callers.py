"""Who is on the other end of a call: whom a certificate names, else whom a bearer token names, else anyone."""

from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio

from fednano.errors import Unauthenticated
from fednano.rpc.policy import ANYONE
from fednano.security.identity import Identity

Context = grpc.aio.ServicerContext[Any, Any]
AUTHORIZATION = "authorization"
SCHEME = "bearer "
# Bounds what is verified.
MAX_TOKEN_LETTERS = 8192


@dataclass(frozen=True, kw_only=True)
class Caller:
    """``proof`` says what the role and the id rest on: "certificate", "token", or "none"."""

    role: str
    id: str
    address: str
    proof: str = "none"
    # Of the certificate, in hexadecimal.
    serial: str = ""
    # Seconds from now until a token is good no more. A certificate's end is watched elsewhere.
    good_for_s: float | None = None

    @property
    def key(self) -> str:
        """Against whom calls are counted: strangers by where they come from, without the port."""
        return f"{self.role}/{self.id}" if self.id else self.address.rpartition(":")[0]


class BearerVerifier(Protocol):
    """What makes a caller of a bearer token."""

    async def verify(self, token: str, address: str) -> Caller:
        """Raises Unauthenticated."""
        ...


def certified_caller(identity: Identity, address: str) -> Caller:
    return Caller(role=identity.role, id=identity.id, address=address, proof="certificate", serial=identity.serial_hex)


async def tokened_caller(context: Context, verifier: BearerVerifier | None) -> Caller:
    """Whom the call's bearer token names, or anyone. Raises Unauthenticated."""
    token = _bearer_token(context)
    if not token:
        return Caller(role=ANYONE, id="", address=context.peer())
    if verifier is None:
        raise Unauthenticated("this service takes no bearer tokens: call with a certificate", fault="no issuer")
    return await verifier.verify(token, context.peer())


def _bearer_token(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == AUTHORIZATION:
            words = value.decode("latin-1") if isinstance(value, bytes) else value
            if not words.lower().startswith(SCHEME) or len(words) > MAX_TOKEN_LETTERS:
                raise Unauthenticated("the authorization metadata is no bearer token", fault="malformed")
            return words[len(SCHEME) :].strip()
    return ""
