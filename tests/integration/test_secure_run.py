"""From nothing to a finished run with every right in place: machines enrol, and train with what enrolling wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from secure_federation import SecureFederation, secure_federation
from test_enrolment import enroll, fednano

from fednano.data.icon_federation import write_icon_federation
from fednano.rpc.audit import verify
from fednano.security.identity import Role

RUN_S = 120.0


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[SecureFederation]:
    with secure_federation(tmp_path / "federation") as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_enrolled_machines_train_together(federation: SecureFederation, tmp_path: Path) -> None:
    folders = write_icon_federation(
        tmp_path / "icons", client_count=2, alpha=1.0, seed=0, train_count=24, val_count=6, test_count=6
    )
    server = federation.addresses["server"]
    create = ("run", "create", "demo", "--server", server, "--clients", "2", "--rounds", "1")
    operate(federation, *create)
    clients = []
    for number, examples in enumerate(folders):
        token = operate(federation, "client", "token", "create", "--run", "demo", "--id", f"site-{number}")["token"]
        box = tmp_path / f"site-{number}"
        enroll(federation, str(token), box, "--server", server, "--examples", str(examples))
        clients.append(start_client(box))
    try:
        assert [client.wait(timeout=RUN_S) for client in clients] == [0, 0]
    finally:
        for client in clients:
            client.kill()
    assert operate(federation, "run", "get", "demo")["state"] == "STATE_SUCCEEDED"
    assert verify(federation.audit_log).sequence > 0
    actions = [json.loads(line) for line in federation.audit_log.read_text().splitlines()]
    done = [entry["method"].rpartition("/")[2] for entry in actions if entry["what"] == "done"]
    assert done == ["CreateRun", "CreateJoinToken", "Enroll", "CreateJoinToken", "Enroll"]
    assert not [entry for entry in actions if entry["what"] == "refused"]


def operate(federation: SecureFederation, *words: str) -> dict[str, object]:
    """What a command of an operator with a certificate prints."""
    folder = federation.holder(Role.OPERATOR, "ada")
    variables = {
        "FEDNANO_AGGREGATOR": federation.addresses["aggregator"],
        "FEDNANO_TLS_CA": str(folder / "ca.crt"),
        "FEDNANO_TLS_CERT": str(folder / "tls.crt"),
        "FEDNANO_TLS_KEY": str(folder / "tls.key"),
    }
    done = fednano(*words, "--json", variables=variables)
    assert done.returncode == 0, done.stderr
    printed: dict[str, object] = json.loads(done.stdout)
    return printed


def start_client(box: Path) -> "subprocess.Popen[bytes]":
    """As an operator of a machine does it: with the settings that enrolling wrote, and nothing else."""
    lines = (box / "client.env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    with (box / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "services.client"], env=os.environ | variables, stderr=log)
