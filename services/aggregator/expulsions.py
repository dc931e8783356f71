"""Ending what an evicted client has under way: uploads and downloads, at once and wherever they wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fednano.names import ClientName
from services.aggregator.store.clients import evicted


@dataclass(eq=False)
class _Transfer:
    """One call's work, in the task that does it."""

    task: asyncio.Task[None]
    is_expelled: bool = False


class Expulsions:
    """The transfers under way, by client. Not for use outside the event loop."""

    def __init__(self) -> None:
        self._transfers: dict[ClientName, set[_Transfer]] = {}

    @asynccontextmanager
    async def transfer(self, client: ClientName) -> AsyncIterator[None]:
        """The block is a transfer of the client's. Raises ClientEvicted as soon as it is expelled."""
        task = asyncio.current_task()
        assert task is not None
        transfer = _Transfer(task)
        self._transfers.setdefault(client, set()).add(transfer)
        try:
            yield
        except asyncio.CancelledError:
            # Others may cancel the task too: then it is theirs.
            if transfer.is_expelled and task.uncancel() == 0:
                raise evicted(client) from None
            raise
        finally:
            left = self._transfers[client]
            left.discard(transfer)
            if not left:
                del self._transfers[client]

    def expel(self, client: ClientName) -> None:
        """Ends all transfers of the client; to be called once the eviction is in the database."""
        for transfer in self._transfers.get(client, ()):
            if not transfer.is_expelled:
                transfer.is_expelled = True
                transfer.task.cancel()
