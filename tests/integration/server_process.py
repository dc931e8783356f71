"""The LLM server as a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    address: str
    process: "subprocess.Popen[bytes]"

    def ended(self, within_s: float = PATIENCE_S) -> int:
        """Its exit status; raises subprocess.TimeoutExpired where it does not end."""
        return self.process.wait(within_s)


@contextmanager
def server_process(folder: Path, *flags: str, listen: str = "127.0.0.1:0") -> Iterator[ServerProcess]:
    """Serves the nano preset, with the kernels of the model in this process; killed at the end of the block."""
    ready = folder / f"ready-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "services.server", "--insecure", "--listen", listen, "--ready-file", str(ready)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDNANO_")}
    log = folder / f"{ready.name}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, *flags], cwd=REPOSITORY, env=environment, stderr=stderr)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield ServerProcess(address=ready.read_text().strip(), process=process)
    finally:
        process.kill()
        process.wait(PATIENCE_S)
