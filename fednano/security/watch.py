"""Whether the certificate behind a call is still good: when the call begins, and as long as it lasts."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from fednano.errors import Unauthenticated
from fednano.security.identity import Identity
from fednano.security.pem_files import PemFiles, clock
from fednano.security.revocation import RevocationList

# A call that is open ends at most so long after the list has changed.
LOOK_S = 1.0


@dataclass
class _OpenCall:
    identity: Identity
    refusal: Unauthenticated | None = None


class CertificateWatch:
    """One for a server. TLS judges a certificate once for a connection, which may last for months; this, each call."""

    def __init__(self, revocations: RevocationList | None, files: PemFiles | None = None) -> None:
        """``files`` are the server's own: looked at too, for where nobody connects nothing else does."""
        self._revocations = revocations
        self._files = files
        self._open: dict[asyncio.Task[object], _OpenCall] = {}

    @contextmanager
    def call(self, identity: Identity | None) -> Iterator[None]:
        """Around one call, in its own task. Raises Unauthenticated at its begin, or while it lasts.

        A call that no certificate stands behind goes by.
        """
        if identity is None:
            yield
            return
        if self._revocations is not None:
            self._revocations.refresh()
        refusal = self._refusal(identity)
        if refusal is not None:
            raise refusal
        task = asyncio.current_task()
        assert task is not None
        call = self._open[task] = _OpenCall(identity)
        try:
            yield
        except asyncio.CancelledError:
            if call.refusal is None or task.uncancel():
                raise
            raise call.refusal from None
        finally:
            del self._open[task]

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """While the block runs, calls end whose certificates are not good any more."""
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            looking.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._files is not None:
                self._files.refresh()
            if self._revocations is not None:
                self._revocations.refresh()
            for task, call in list(self._open.items()):
                if call.refusal is None and (refusal := self._refusal(call.identity)):
                    call.refusal = refusal
                    task.cancel()

    def _refusal(self, identity: Identity) -> Unauthenticated | None:
        if self._revocations is not None and self._revocations.has(identity.serial):
            return _refusal(
                identity, "revoked", "is revoked: ask who runs the federation's CA for another (`fednano certs issue`)"
            )
        now = datetime.now(UTC)
        if now > identity.not_after:
            return _refusal(
                identity,
                "expired",
                f"ended at {clock(identity.not_after)}, and the clock here says {clock(now)}: renew it with"
                " `fednano certs issue`; its files are read again by themselves",
            )
        return None


def _refusal(identity: Identity, fault: str, words: str) -> Unauthenticated:
    return Unauthenticated(
        f"the certificate {identity.serial_hex} of {identity} {words}", fault=fault, serial=identity.serial_hex
    )
