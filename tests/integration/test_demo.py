"""The whole demo on real processes, as small as it gets: two clients, one round, few examples."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from fednano.data.icons.generate import generate
from fednano.data.icons.questions import question

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TIMEOUT_S = 240.0
CLIENTS = ("client-1", "client-2")
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


def test_a_folder_of_ones_own_is_trained_on_with_no_code(tmp_path: Path) -> None:
    own, out = tmp_path / "own", tmp_path / "demo"
    write_own_examples(own, {"train": 32, "val": 8, "test": 8})
    done = subprocess.run(
        demo_command(out, "--examples", str(own), "--wire-encoding", "bfloat16", "--json"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"]["per_client"].keys() == {"client-1", "client-2"}
    shared = [len((out / "examples" / name / "examples.jsonl").read_text().splitlines()) for name in CLIENTS]
    assert sum(shared) == 48
    log = (out / "logs" / "client-1.log").read_text()
    assert "bfloat16" in log


def test_a_folder_that_is_none_ends_the_demo_before_it_starts(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = demo_command(out, "--examples", str(tmp_path / "none"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert "has no examples" in done.stderr


def write_own_examples(folder: Path, counts: dict[str, int]) -> None:
    """Pictures and examples.jsonl, as somebody would who has never heard of this project."""
    folder.mkdir()
    lines = []
    for split, count in counts.items():
        for number, scene in enumerate(generate(count, "B", len(split))):
            image = f"{split}-{number}.png"
            scene.image.save(folder / image)
            asked = question(scene, "B", Random(number))
            fields = {"id": f"{split}/{number}", "image": image, "question": asked, "answer": scene.drawing.answer}
            lines.append(json.dumps({**fields, "topic": scene.skill, "split": split}))
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")


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
