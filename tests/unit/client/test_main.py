"""How the client's process ends."""

import subprocess
import sys
from pathlib import Path

import pytest

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
