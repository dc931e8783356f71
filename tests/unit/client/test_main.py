"""How the client's process ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fednano.data.icon_federation import write_icon_federation

COMMAND = [sys.executable, "-m", "services.client", "--client-id", "client-1", "--insecure"]
PEERS = ["--server", "127.0.0.1:1", "--aggregator", "127.0.0.1:1", "--server-wait-s", "1"]
ROOT = Path(__file__).resolve().parents[3]


def end_of(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--examples"),
        ((*PEERS, "--examples", "nowhere"), "nowhere"),
        ((*PEERS, "--examples", "nowhere", "--model", "no-model"), "no-model"),
    ],
)
def test_what_the_user_can_set_right_ends_with_status_2_and_is_named(arguments: tuple[str, ...], named: str) -> None:
    status, line = end_of(*arguments)
    assert status == 2
    assert named in line


def test_a_signal_while_waiting_for_peers_ends_the_process_with_status_0(tmp_path: Path) -> None:
    write_icon_federation(tmp_path, client_count=1, alpha=1.0, seed=0, train_count=2, val_count=1, test_count=1)
    ready = tmp_path / "ready"
    arguments = [*PEERS[:4], "--examples", str(tmp_path / "client-1"), "--ready-file", str(ready)]
    with subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stderr=subprocess.PIPE) as process:
        deadline_s = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 0


def test_a_server_that_never_serves_ends_the_process_with_status_1_and_is_named(tmp_path: Path) -> None:
    write_icon_federation(tmp_path, client_count=1, alpha=1.0, seed=0, train_count=2, val_count=1, test_count=1)
    status, line = end_of(*PEERS, "--examples", str(tmp_path / "client-1"))
    assert status == 1
    assert "127.0.0.1:1" in line
