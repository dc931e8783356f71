"""A real LLM server process on loopback, and what it takes of the machine."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

READY_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 20.0


@dataclass(frozen=True, kw_only=True)
class SplitProcess:
    address: str
    metrics_address: str
    process: "subprocess.Popen[bytes]"

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def memory_bytes(self) -> int:
        """Resident now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024

    def thread_count(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def open_file_count(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the samples of that name whose labels include the given ones."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as response:
            text = response.read().decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


@contextmanager
def split_process(folder: Path, *flags: str) -> Iterator[SplitProcess]:
    """Serves the embedded model until the block ends; the log is in ``folder``."""
    ready, metrics_address = folder / "ready", f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "services.server", "--insecure", "--ready-file", str(ready)]
    command += ["--metrics-listen", metrics_address, "--log-level", "WARNING", *flags]
    with (folder / "server.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            deadline_s = time.monotonic() + READY_TIMEOUT_S
            while not ready.exists():
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline_s, "the server did not start in time"
                time.sleep(0.05)
            yield SplitProcess(address=ready.read_text().strip(), metrics_address=metrics_address, process=process)
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port
