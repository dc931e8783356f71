"""Supervision of real processes: small scripts of the standard library stand where services would be."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fednano.cli.processes import TAIL_LINES, Part, Processes
from fednano.errors import PartFailed

SLEEP = "import time; time.sleep(60)"
DEADLINE_S = 10.0


def launch(processes: Processes, code: str, *, survives_kill: bool = False, may_end: bool = False) -> Part:
    part = Part(
        name="part",
        command=(sys.executable, "-c", code),
        log=processes.folder / "logs" / "part.log",
        ready_file=processes.folder / "ready" / "part",
        survives_kill=survives_kill,
        may_end=may_end,
    )
    part.launch()
    processes.parts.append(part)
    return part


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def processes(tmp_path: Path, said: list[str]) -> Processes:
    return Processes(tmp_path, said.append)


def test_a_crash_is_told_with_name_exit_code_and_the_last_lines(processes: Processes) -> None:
    with processes:
        part = launch(processes, "for n in range(30): print(f'line {n}.')\nraise SystemExit(7)")
        part.process.wait(DEADLINE_S)
        with pytest.raises(PartFailed) as caught:
            processes.check()
    shown = caught.value.message.splitlines()
    assert "part ended: exit code 7" in shown[0]
    assert shown[1:] == [f"line {n}." for n in range(30 - TAIL_LINES, 30)]


def test_an_early_end_with_success_is_a_failure_unless_the_part_may_end(processes: Processes) -> None:
    with processes:
        launch(processes, "", may_end=True).process.wait(DEADLINE_S)
        processes.check()
        launch(processes, "").process.wait(DEADLINE_S)
        with pytest.raises(PartFailed, match="exit code 0"):
            processes.check()


def test_a_killed_part_that_survives_it_is_restarted_three_times_and_says_so(
    processes: Processes, said: list[str]
) -> None:
    with processes:
        part = launch(processes, SLEEP, survives_kill=True)
        for _ in range(3):
            kill(part)
            processes.check()
            assert part.process.poll() is None
        kill(part)
        with pytest.raises(PartFailed, match="SIGKILL"):
            processes.check()
    assert len(said) == 3
    assert "part was killed by SIGKILL: restarting it" in said[0]


def test_any_other_killed_part_is_not_restarted(processes: Processes) -> None:
    with processes:
        kill(launch(processes, SLEEP))
        with pytest.raises(PartFailed, match="SIGKILL"):
            processes.check()


def test_a_part_that_exits_by_itself_is_not_restarted_even_if_it_survives_kills(processes: Processes) -> None:
    with processes:
        launch(processes, "raise SystemExit(1)", survives_kill=True).process.wait(DEADLINE_S)
        with pytest.raises(PartFailed, match="exit code 1"):
            processes.check()


def test_leaving_the_block_stops_every_part(processes: Processes) -> None:
    with processes:
        part = launch(processes, SLEEP)
    assert part.process.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="parts die with their parent on Linux only")
def test_parts_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent_code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_processes import SLEEP, launch
from fednano.cli.processes import Processes
print(launch(Processes(Path({str(tmp_path)!r}), print), SLEEP).process.pid, flush=True)
time.sleep(60)
"""
    with Processes(tmp_path, print) as outer:
        parent = launch(outer, parent_code)
        child = int(first_line(parent.log))
        kill(parent)
        deadline = time.monotonic() + DEADLINE_S
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(child)


def kill(part: Part) -> None:
    part.process.kill()
    part.process.wait(DEADLINE_S)


def first_line(log: Path) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while not log.read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.05)
    return log.read_text().splitlines()[0]


def is_running(pid: int) -> bool:
    """A zombie that nobody has reaped yet does not run."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


PARENT = """
import sys, time
from pathlib import Path
from fednano.cli.processes import Part
folder = Path(sys.argv[1])
part = Part(name="part", command=(sys.executable, "-c", "import time; time.sleep(60)"), log=folder / "part.log",
            ready_file=folder / "ready")
part.launch()
print(part.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_part_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline_s = time.monotonic() + DEADLINE_S
    while is_living(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not is_living(pid)


def is_living(pid: int) -> bool:
    """Not once it is gone, or a zombie that nobody has asked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
