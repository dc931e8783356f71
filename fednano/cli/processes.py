"""The processes of a federation on this machine: started, watched, restarted where that is safe, and stopped.

A part is ``python -m services.NAME``. Its log is a file; its address is what it writes to its ready file.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from fednano.errors import PartFailed

TAIL_LINES = 20
STOP_TIMEOUT_S = 10.0
POLL_S = 0.2
MAX_RESTARTS = 3
# Runs first in each part's process, then becomes the part: SIGKILL comes when the process that started it dies. Not a
# preexec_fn: that takes a plain fork, for which gRPC stops its threads first, and may wait for them for minutes.
PR_SET_PDEATHSIG = 1
DIE_WITH_PARENT = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(kw_only=True)
class Part:
    """One process. ``survives_kill``: when a signal kills it, the same command continues its work."""

    name: str
    command: tuple[str, ...]
    log: Path
    ready_file: Path
    survives_kill: bool = False
    # Whether ending with exit code 0 is what it is meant to do.
    may_end: bool = False
    restarts: int = 0
    process: subprocess.Popen[bytes] = field(init=False)

    def launch(self) -> None:
        self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - the command is our own
                _dying_with_parent(self.command) if sys.platform == "linux" else self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=part_environment(),
                # Ctrl-C reaches the demo alone, which then stops its parts in order.
                start_new_session=True,
            )

    @property
    def address(self) -> str | None:
        """Where it serves, once it has said so."""
        return self.ready_file.read_text() if self.ready_file.is_file() else None

    @property
    def was_killed(self) -> bool:
        return self.process.returncode is not None and self.process.returncode < 0

    def failure(self) -> PartFailed:
        """What to show of a part that ended: its name, how it ended, the last lines that it wrote."""
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name} (exit code {code})" if code < 0 else f"exit code {code}"
        return PartFailed(f"{self.name} ended: {how}; the last lines of {self.log}:\n{tail(self.log)}", part=self.name)


class Processes:
    """The parts of one federation. As a context, it stops all of them when the block ends, however it ends."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self.parts: list[Part] = []
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def start(
        self, name: str, module: str, flags: Sequence[str], *, survives_kill: bool = False, may_end: bool = False
    ) -> Part:
        """Starts ``python -m module flags``, plaintext and with a ready file of its own."""
        ready_file = self.folder / "ready" / name
        part = Part(
            name=name,
            command=(sys.executable, "-m", module, *flags, "--insecure", "--ready-file", str(ready_file)),
            log=self.folder / "logs" / f"{name}.log",
            ready_file=ready_file,
            survives_kill=survives_kill,
            may_end=may_end,
        )
        part.log.write_bytes(b"")
        part.launch()
        self.parts.append(part)
        return part

    async def ended(self, parts: Sequence[Part], timeout_s: float) -> None:
        """Waits until the parts have ended as they are meant to, and forgets them; PartFailed where one does not."""
        deadline = time.monotonic() + timeout_s
        while running := [part for part in parts if part.process.poll() is None]:
            if time.monotonic() > deadline:
                raise PartFailed(f"{running[0].name} has not ended after {timeout_s:g} s", part=running[0].name)
            await asyncio.sleep(POLL_S / 4)
        self.check()
        self.parts = [part for part in self.parts if part not in parts]

    def check(self) -> None:
        """Restarts what a signal killed and may be restarted; raises PartFailed for any other part that has ended."""
        for part in self.parts:
            if part.process.poll() is None or (part.may_end and part.process.returncode == 0):
                continue
            if not (part.survives_kill and part.was_killed and part.restarts < MAX_RESTARTS):
                raise part.failure()
            part.restarts += 1
            number = signal.Signals(-part.process.returncode).name
            self.say(f"{part.name} was killed by {number}: restarting it ({part.restarts} of at most {MAX_RESTARTS})")
            part.launch()

    async def supervise(self) -> None:
        """Checks until a part fails; runs beside the demo's own work and is cancelled with it."""
        while True:
            self.check()
            await asyncio.sleep(POLL_S)

    async def ready(self, part: Part, timeout_s: float) -> str:
        """The part's address, once it serves; PartFailed when it does not within ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if address := part.address:
                return address
            await asyncio.sleep(POLL_S / 4)
        raise PartFailed(
            f"{part.name} does not serve after {timeout_s:g} s; the last lines of {part.log}:\n{tail(part.log)}",
            part=part.name,
        )

    def stop(self) -> None:
        """SIGTERM to every part, the last started first; SIGKILL to those still there after ``STOP_TIMEOUT_S``."""
        for part in reversed(self.parts):
            if part.process.poll() is None:
                part.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for part in reversed(self.parts):
            try:
                part.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                part.process.kill()
                part.process.wait(timeout=STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def part_environment() -> dict[str, str]:
    """The environment of a part: no FEDNANO_* setting of the user leaks in, and no part takes all cores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDNANO_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, or a word that it is empty."""
    if not log.is_file():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) or "(empty)"


def free_address() -> str:
    """A loopback address that was free a moment ago, for a part that must come back at the same one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _dying_with_parent(command: Sequence[str]) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command)
