"""An experiment on real processes, cut short by Ctrl-C and gone on with: as small as it gets."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
TIMEOUT_S = 180.0


def command(out: Path) -> list[str]:
    arms = ["--only", "FedAvg", "--only", "FedNano"]
    small = ["--preset", "nano", "--seeds", "1", "--rounds", "1", "--clients", "2", "--train-examples", "40"]
    return [sys.executable, "-m", "fednano.cli.main", "experiment", "methods", *arms, *small, "--out", str(out)]


def test_an_experiment_stopped_by_ctrl_c_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "methods"
    with subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        finished = wait_for_cell(out / "cells")
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 130
    assert "the same command continues" in errors
    assert not (out / "results.json").exists()
    changed_ns = finished.stat().st_mtime_ns

    again = subprocess.run(command(out), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert again.returncode == 0, again.stderr
    assert "1 cells to run" in again.stdout
    assert finished.stat().st_mtime_ns == changed_ns
    results = json.loads((out / "results.json").read_text())
    assert [row["label"] for row in results["rows"]] == ["FedAvg", "FedNano"]
    assert all(row["per_client"].keys() == {"client-1", "client-2"} for row in results["rows"])
    assert results["rows"][1]["bytes"]["fisher"] > 0
    assert "| FedAvg |" in (out / "table.md").read_text()
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def wait_for_cell(folder: Path) -> Path:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if found := list(folder.glob("*.json")):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no cell in {folder}")
