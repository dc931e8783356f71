"""The LLM server as a process: how it starts, ends and refuses to start."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE_S = 60.0


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "services.server", "--listen", "127.0.0.1:0", *flags]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FEDNANO_")}


def test_it_writes_its_address_when_ready_and_ends_well_on_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "address"
    process = subprocess.Popen(
        command("--insecure", "--ready-file", str(ready)), cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ready.read_text().startswith("127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0
    assert b"Traceback" not in stderr


def test_an_address_that_is_taken_is_told_before_the_model_is_read() -> None:
    """There is no such model: whoever reads it first says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            command("--insecure", "--listen", listen, "--model", "no-such-model"),
            cwd=REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == f"services.server: cannot listen on {listen}: Address already in use\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--insecure", "--model", "no-such-model"], "no-such-model is neither"),
        (["--insecure", "--threads", "0"], "--threads"),
        ([], "--insecure"),
    ],
)
def test_what_a_person_can_set_right_is_said_in_one_line(flags: list[str], words: str) -> None:
    done = subprocess.run(
        command(*flags),
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_it_needs_none_of_what_only_an_edge_installs() -> None:
    program = "import sys; sys.modules.update(PIL=None); import services.server.__main__, services.server.process"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
