"""A service as a process that can be killed and started again at the same address, and never outlives the tests."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from fednano.cli.processes import Part, tail

PATIENCE_S = 120.0


class Service:
    """``python -m MODULE FLAGS`` or ``python FILE FLAGS``. It dies with this process, however this process dies."""

    def __init__(self, name: str, program: Sequence[str], folder: Path, *, listens: bool = True) -> None:
        for part in ("logs", "ready"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self.name = name
        self.address = "127.0.0.1:0"
        self._program = tuple(program)
        self._listens = listens
        self._part = Part(
            name=name,
            command=(),
            log=folder / "logs" / f"{name}.log",
            ready_file=folder / "ready" / name,
        )

    @classmethod
    def aggregator(cls, folder: Path, *flags: str, state: Path | None = None) -> Self:
        """Leases outlast any restart, so that what differs from an undisturbed run is a fault and not a lost client. Of
        updates it keeps as few as it can: what is deleted too early is missed.
        """
        program = ["-m", "services.aggregator", "--state", str(state or folder / "state"), "--lease-s", "60"]
        program += ["--keep-update-rounds", "1", *flags]
        return cls("aggregator", program, folder)

    def launch(self) -> None:
        """Does not wait for it; see ``serving``."""
        own = ["--insecure", "--listen", self.address, "--ready-file", str(self._part.ready_file)]
        self._part.command = (sys.executable, *self._program, *(own if self._listens else ()))
        self._part.launch()

    async def serving(self) -> str:
        """The address, the same one after each start, once it serves."""
        async with asyncio.timeout(PATIENCE_S):
            while self._part.address is None:
                assert self.is_running, self.last_words
                await asyncio.sleep(0.02)
        self.address = self._part.address
        return self.address

    async def start(self) -> str:
        self.launch()
        return await self.serving()

    def kill(self) -> None:
        """SIGKILL. Nothing where it has ended, or was never started."""
        if hasattr(self._part, "process"):
            self._part.process.kill()
            self._part.process.wait(timeout=PATIENCE_S)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """The exit status, once there is one."""
        async with asyncio.timeout(PATIENCE_S):
            while (status := self._part.process.poll()) is None:
                await asyncio.sleep(0.02)
        return status

    @property
    def pid(self) -> int:
        return self._part.process.pid

    @property
    def is_running(self) -> bool:
        return self._part.process.poll() is None

    @property
    def log(self) -> str:
        return self._part.log.read_text(errors="replace")

    @property
    def last_words(self) -> str:
        return f"{self.name} ended with {self._part.process.returncode}:\n{tail(self._part.log)}"


@asynccontextmanager
async def killed_at_the_end(*services: Service) -> AsyncIterator[None]:
    """Whatever became of them meanwhile."""
    try:
        yield
    finally:
        for service in services:
            service.kill()
