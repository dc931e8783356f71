"""Waking those who wait for a run to change: its driver and its watchers at every change, clients at new tasks."""

import asyncio


class Changes:
    """Take a ticket, look at the run, then wait on the ticket: no change in between is missed."""

    def __init__(self) -> None:
        self._tickets: dict[str, asyncio.Event] = {}
        self._task_tickets: dict[str, asyncio.Event] = {}

    def ticket(self, run: str) -> asyncio.Event:
        """Is set at the run's next change."""
        return self._tickets.setdefault(run, asyncio.Event())

    def task_ticket(self, run: str) -> asyncio.Event:
        """Is set when clients' tasks may have changed: each update wakes one driver, not a thousand clients."""
        return self._task_tickets.setdefault(run, asyncio.Event())

    def notify(self, run: str) -> None:
        """The run has changed, though nobody's task."""
        _wake(self._tickets, run)

    def notify_tasks(self, run: str) -> None:
        """The run has changed, and what its clients are to do."""
        _wake(self._tickets, run)
        _wake(self._task_tickets, run)


def _wake(tickets: dict[str, asyncio.Event], run: str) -> None:
    ticket = tickets.pop(run, None)
    if ticket is not None:
        ticket.set()


async def wait_for(ticket: asyncio.Event, timeout_s: float) -> None:
    """Returns at the change, or after ``timeout_s`` seconds."""
    try:
        async with asyncio.timeout(max(timeout_s, 0.0)):
            await ticket.wait()
    except TimeoutError:
        return
