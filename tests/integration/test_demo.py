"""The whole demo on real processes, as small as it gets: two clients, one round, few examples."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TIMEOUT_S = 100.0
REPORT_KEYS = {"accuracy", "rounds", "clients", "method", "seed", "seconds", "parameters", "bytes"}


def demo_command(out: Path, *more: str) -> list[str]:
    small = ["--clients", "2", "--rounds", "1", "--train-examples", "40"]
    return [sys.executable, "-m", "fednano.cli.main", "demo", *small, "--out", str(out), *more]


def test_the_demo_ends_with_its_report_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(demo_command(out, "--json"), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert report.keys() >= REPORT_KEYS
    assert report["accuracy"]["per_client"].keys() == {"client-1", "client-2"}
    assert report["parameters"]["adapter"] == 2 * 2 * 128 * 16
    assert report["bytes"].pop("gram") == 0
    assert min(report["bytes"].values()) > 0
    assert hashlib.sha256((out / "adapter.safetensors").read_bytes()).hexdigest() == report["adapter_sha256"]
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not processes_that_name(out)


def test_a_crash_of_a_client_ends_the_demo_with_its_log(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with subprocess.Popen(demo_command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        client = wait_for_process(out / "ready" / "client-2")
        signal_process(client, signal.SIGKILL)
        _, errors = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 1
    assert "client-2 ended: was killed by SIGKILL" in errors
    assert not processes_that_name(out)


def test_ctrl_c_stops_every_part_and_exits_130(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with subprocess.Popen(demo_command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        wait_for_process(out / "ready" / "client-2")
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 130
    assert not processes_that_name(out)


def wait_for_process(name: Path) -> int:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if found := processes_that_name(name):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no process names {name}")


def processes_that_name(path: Path) -> list[int]:
    """Services, by their command lines."""
    found = []
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command_line.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(b"services.") for word in words) and str(path).encode() in b" ".join(words):
            found.append(int(command_line.parent.name))
    return found


def signal_process(pid: int, number: signal.Signals) -> None:
    subprocess.run(["kill", f"-{number.value}", str(pid)], check=True)
