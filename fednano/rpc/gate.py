"""What every call passes before anything of it is read: who calls, how often, whether that role may, and as whom.

Nothing here looks at the services' state, and a request's bytes are parsed only once all but the last are answered.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from fednano.config import Security, ServiceSettings
from fednano.errors import (
    ClientEvicted,
    FieldInvalid,
    InternalFault,
    JoinTokenRefused,
    MessageTooLarge,
    NotTheClient,
    RoleDenied,
    Unauthenticated,
    WireError,
)
from fednano.names import ClientName
from fednano.rpc.audit import AuditLog, Entry
from fednano.rpc.callers import BearerVerifier, Caller, Context, certified_caller, tokened_caller
from fednano.rpc.limits import DEFAULT_LIMITS, CallLimits, PeerLimits, TooManyCalls
from fednano.rpc.policy import ANYONE, rule_of
from fednano.rpc.status import reason_name
from fednano.security.identity import Role, peer_identity
from fednano.security.watch import CertificateWatch

# Refusals of a caller, not of what it asks: the audit log has them, whatever the method.
REFUSALS = (Unauthenticated, RoleDenied, NotTheClient, JoinTokenRefused, ClientEvicted, MessageTooLarge)
# The fields by which requests, and answers, name what they are about.
RESOURCE_FIELDS = (
    "name",
    "parent",
    "run",
    "run_id",
    "round",
    "client",
    "client_id",
    "token_id",
    "header.round",
    "header.client",
)


@dataclass(frozen=True, kw_only=True)
class GateTerms:
    """How strict a gate is. Without an audit log nothing is kept; without a verifier no token is taken."""

    security: Security
    limits: CallLimits = DEFAULT_LIMITS
    audit: AuditLog | None = None
    bearer: BearerVerifier | None = None


@contextmanager
def gate_terms(settings: ServiceSettings, bearer: BearerVerifier | None = None) -> Iterator[GateTerms]:
    """What a service's settings ask of its gate; the audit log is open while the block runs. Raises SettingsInvalid."""
    limits = CallLimits(
        calls_per_s=settings.calls_per_s, call_burst=settings.call_burst, calls_at_once=settings.calls_at_once
    )
    audit = AuditLog(settings.audit_log) if settings.audit_log else None
    try:
        yield GateTerms(security=settings.security, limits=limits, audit=audit, bearer=bearer)
    finally:
        if audit is not None:
            audit.close()


class Passage:
    """One call on its way through. It reads what the caller sends, and checks that too."""

    def __init__(self, method: str, address: str, audit: AuditLog | None, limits: PeerLimits) -> None:
        self.caller = Caller(role=ANYONE, id="", address=address)
        self.method = method
        self.rule = rule_of(method)
        # Whether the caller may act for every client.
        self.is_trusted = False
        self._audit = audit
        self._limits = limits
        self._resource: dict[str, str] = {}
        self._has_begun = False

    async def read(self, content: bytes, deserialize: Callable[[bytes], Any]) -> Any:
        """The message. Raises MessageTooLarge, FieldInvalid where it is none, NotTheClient."""
        most = self.rule.max_bytes
        if len(content) > most:
            message = f"{self.method} takes messages of at most {most} bytes, not of {len(content)}"
            raise MessageTooLarge(message, size_bytes=str(len(content)), max_bytes=str(most))
        try:
            request = deserialize(content)
        except DecodeError:
            raise FieldInvalid(f"these bytes are no message of {self.method}", field="") from None
        if not self._has_begun:
            self._resource = _resource(request)
        if self.rule.own and not self.is_trusted:
            _check_own(request, self.rule.own, self.caller)
        if not self._has_begun and self.rule.is_audited:
            if self.caller.role != Role.OPERATOR and not self.is_trusted:
                self._limits.take_note(self.caller.key)
            await self._note("asked")
        self._has_begun = True
        return request

    def note_answer(self, answer: Any) -> None:
        """Keeps the names that only the service knew, such as whom a token has enrolled."""
        if self.rule.is_audited:
            self._resource |= _resource(answer)

    async def end(self, error: WireError | None) -> None:
        """Keeps what became of the call, where the audit log is to have it."""
        is_refusal = isinstance(error, REFUSALS)
        if self.rule.is_audited and self._has_begun:
            await self._note("done" if error is None else "refused" if is_refusal else "failed", error)
        elif is_refusal:
            left_out = self._limits.note_refusal(self.caller.key)
            if left_out is not None:
                await self._note("refused", error, left_out)
        elif isinstance(error, TooManyCalls) and error.is_first:
            await self._note("refused", error)

    async def _note(self, what: str, error: WireError | None = None, left_out: int = 0) -> None:
        if self._audit is None:
            return
        entry = Entry(
            what=what,
            method=self.method.removeprefix("/"),
            role=self.caller.role,
            id=self.caller.id,
            proof=self.caller.proof,
            serial=self.caller.serial,
            address=self.caller.address,
            resource=self._resource,
            outcome="" if error is None else reason_name(type(error)),
            left_out=left_out,
        )
        await asyncio.to_thread(self._audit.append, entry)


class Gate:
    """One for a server. Not for use outside the event loop."""

    def __init__(self, terms: GateTerms, watch: CertificateWatch) -> None:
        self._terms = terms
        self._watch = watch
        self._limits = PeerLimits(terms.limits)

    @asynccontextmanager
    async def passing(self, method: str, context: Context) -> AsyncIterator[Passage]:
        """The call's passage while the block runs. Raises Unauthenticated, RoleDenied, ServerBusy."""
        passage = Passage(method, context.peer(), self._terms.audit, self._limits)
        outcome: WireError | None = InternalFault("the call broke off")
        try:
            async with self._admitted(passage, context):
                yield passage
            outcome = None
        except WireError as error:
            outcome = error
            raise
        finally:
            await passage.end(outcome)

    @asynccontextmanager
    async def _admitted(self, passage: Passage, context: Context) -> AsyncIterator[None]:
        if self._terms.security.insecure:
            # One trusted machine: nobody is known, so nothing is counted against anybody.
            passage.is_trusted = True
            yield
            return
        identity = peer_identity(context)
        if identity is not None:
            passage.caller = certified_caller(identity, context.peer())
        self._limits.count(passage.caller.key)
        with self._watch.call(identity):
            if identity is None:
                passage.caller = await tokened_caller(context, self._terms.bearer)
            _check_role(passage)
            with self._limits.open_call(passage.caller.key):
                async with _while_good(passage.caller):
                    yield


@asynccontextmanager
async def _while_good(caller: Caller) -> AsyncIterator[None]:
    """Raises Unauthenticated where the call outlasts the caller's token."""
    try:
        async with asyncio.timeout(caller.good_for_s) as bound:
            yield
    except TimeoutError:
        if not bound.expired():
            raise
        raise Unauthenticated("the bearer token has expired: call again with a new one", fault="expired") from None


def _check_role(passage: Passage) -> None:
    caller, method = passage.caller, passage.method
    if caller.role in passage.rule.roles:
        return
    if caller.role == ANYONE:
        # The address where certificates are asked for lets nobody come so far without one.
        message = (
            f"{method} needs a bearer token here, where nobody is asked for a certificate: give one, or call the"
            " address of --listen with a certificate"
        )
        raise Unauthenticated(message, fault="missing")
    allowed = " or ".join(sorted(passage.rule.roles)) or "nobody"
    raise RoleDenied(
        f"{caller.id} is {caller.role}, but {method} is for {allowed}: call with a certificate or token of that role",
        role=caller.role,
        id=caller.id,
        method=method,
    )


def _check_own(request: Message, path: str, caller: Caller) -> None:
    """Raises NotTheClient where the request names another client. A frame after the header names none."""
    holder = path.rpartition(".")[0]
    if holder and request.DESCRIPTOR.fields_by_name[holder].containing_oneof and not request.HasField(holder):
        return
    text = _field(request, path)
    named = text if path == "client_id" else ClientName.parse(text, path).client
    if named != caller.id:
        raise NotTheClient(
            f"{path} names {named[:100]!r}, but the certificate is {caller.id}'s: a client acts only as itself",
            field=path,
            client=named[:100],
            id=caller.id,
        )


def _resource(request: Message) -> dict[str, str]:
    """Whatever names are in a request or an answer."""
    found = {path: _field(request, path) for path in RESOURCE_FIELDS}
    return {path: text for path, text in found.items() if text}


def _field(request: Message, path: str) -> str:
    """The text at a path such as header.client; empty where there is none."""
    part: Any = request
    for name in path.split("."):
        part = getattr(part, name, "")
    return part if isinstance(part, str) else ""
