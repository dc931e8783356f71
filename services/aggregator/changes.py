"""Waking those who wait for a run to change."""

import asyncio


class Changes:
    """Take a ``ticket``, look at the run, then wait on the ticket: no change in between is missed."""

    def __init__(self) -> None:
        self._tickets: dict[str, asyncio.Event] = {}

    def ticket(self, run: str) -> asyncio.Event:
        """Is set at the run's next change."""
        return self._tickets.setdefault(run, asyncio.Event())

    def notify(self, run: str) -> None:
        ticket = self._tickets.pop(run, None)
        if ticket is not None:
            ticket.set()


async def wait_for(ticket: asyncio.Event, timeout_s: float) -> None:
    """Returns at the change, or after ``timeout_s`` seconds."""
    try:
        async with asyncio.timeout(max(timeout_s, 0.0)):
            await ticket.wait()
    except TimeoutError:
        return
