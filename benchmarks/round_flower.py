"""Flower in the race, from an environment of its own: the current SuperLink and SuperNodes, and the legacy gRPC API."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.round_arena import READY_TIMEOUT_S, REPOSITORY, Arena, ContestantFailed

VERSION = "1.42.0"
VENV = REPOSITORY / "benchmarks" / ".flower-venv"
APP = REPOSITORY / "benchmarks" / "flower" / "app"
# What its distribution asks for. A list of authorities' certificates is of no use here, and an index may lag behind
# the one that it wants: any will do.
REQUIREMENTS = """
import importlib.metadata as metadata
for requirement in metadata.requires("flwr"):
    if "extra ==" not in requirement:
        print("certifi" if requirement.startswith("certifi") else requirement)
"""


def absent() -> str:
    if not (VENV / "bin" / "flower-superlink").is_file():
        return "Flower is not set up: python -m benchmarks.round --setup-flower"
    return ""


def set_up() -> None:
    """Makes the virtual environment anew, from the package index."""
    python = str(VENV / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", f"flwr=={VERSION}"], check=True)
    wanted = subprocess.run([python, "-c", REQUIREMENTS], check=True, capture_output=True, text=True).stdout
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted.splitlines()], check=True)


def start_legacy(arena: Arena) -> None:
    address = f"127.0.0.1:{_free_port()}"
    tls: list[str | Path] = [] if arena.certificates is None else ["--tls", arena.certificates.authority.parent]
    command: list[str | Path] = [VENV / "bin" / "python", "-m", "benchmarks.flower.legacy", "--address", address, *tls]
    counts = ("--clients", str(arena.clients), "--rounds", str(arena.total_rounds))
    environment = _environment(arena)
    arena.spawn([*command, *counts], is_server=True, environment=environment)
    _wait_for_port(address)
    for client in range(arena.clients):
        arena.spawn([*command, "--marks", arena.marks, "--client", str(client)], environment=environment)


def start_current(arena: Arena) -> None:
    """A SuperLink as it is by default, state in memory; a SuperNode for each client; the app given by ``flwr run``."""
    _start_current(arena)


def start_with_database(arena: Arena) -> None:
    """The same, but the SuperLink has its state in an SQLite file."""
    _start_current(arena, "--database", arena.folder / "superlink.sqlite3")


def _start_current(arena: Arena, *flags: str | Path) -> None:
    port = _free_port()
    address, environment = f"127.0.0.1:{port}", _environment(arena)
    link_tls, node_tls = _tls_flags(arena)
    command = [VENV / "bin" / "flower-superlink", "--port", str(port), *link_tls, *flags]
    arena.spawn(command, is_server=True, environment=environment)
    _wait_for_port(address)
    for client in range(arena.clients):
        node = ("--superlink", address, "--port", str(_free_port()), "--node-config", f"partition-id={client}")
        arena.spawn([VENV / "bin" / "flower-supernode", *node, *node_tls], environment=environment)
    _write_connection(Path(environment["FLWR_HOME"]), address, arena)
    app = Path(shutil.copytree(APP, arena.folder / "app"))
    config = f"rounds={arena.total_rounds} clients={arena.clients}"
    arena.spawn([VENV / "bin" / "flwr", "run", app, "race", "--run-config", config], environment=environment)


def _environment(arena: Arena) -> Mapping[str, str]:
    home = arena.folder / "flower-home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": f"{VENV / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FEDNANO_RACE_MARKS": str(arena.marks),
    }


def _tls_flags(arena: Arena) -> tuple[list[str | Path], list[str | Path]]:
    """For the SuperLink and for a SuperNode, which shows no certificate of its own: Flower has no mutual TLS."""
    if arena.certificates is None:
        return ["--insecure"], ["--insecure"]
    given = arena.certificates
    flags: list[str | Path] = [
        "--ssl-ca-certfile",
        given.authority,
        "--ssl-certfile",
        given.certificate,
        "--ssl-keyfile",
        given.key,
    ]
    return flags, [*flags, "--root-certificates", given.authority]


def _write_connection(home: Path, address: str, arena: Arena) -> None:
    security = (
        "insecure = true" if arena.certificates is None else f'root-certificates = "{arena.certificates.authority}"'
    )
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "race"\n\n[superlink.race]\naddress = "{address}"\n{security}\n'
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.1)
    raise ContestantFailed(f"nothing listens on {address} after {READY_TIMEOUT_S:g} s")
