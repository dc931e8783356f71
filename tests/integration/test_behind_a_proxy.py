"""A client behind a firewall: it knows no name and reaches no address but the HTTP proxy's, and takes part.

The services' names end in .test, which no name server knows: only the proxy can tell where they are.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from connect_proxy import connect_proxy
from secure_federation import SecureFederation, secure_federation
from test_secure_run import operate

from fednano.config import Security
from fednano.data.icon_federation import write_icon_federation
from fednano.rpc.diagnosis import diagnose
from fednano.security.identity import Role

NAMES = {"aggregator": "aggregator.test:7000", "ops": "aggregator.test:7002", "server": "llm.test:7001"}
RUN_S = 120.0


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    folder = tmp_path_factory.mktemp("federation")
    hosts = ("aggregator.test", "llm.test")
    with secure_federation(folder, flags=("--client-address", NAMES["aggregator"]), hosts=hosts) as running:
        yield running


def places(federation: SecureFederation) -> dict[str, str]:
    return {name: federation.addresses[service] for service, name in NAMES.items()}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_enrols_and_trains_through_an_http_proxy(federation: SecureFederation, tmp_path: Path) -> None:
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("aggregator.test", 7000)
    server = federation.addresses["server"]
    operate(federation, "run", "create", "demo", "--server", server, "--clients", "1", "--rounds", "1")
    token = str(operate(federation, "client", "token", "create", "--run", "demo", "--id", "box")["token"])
    examples = write_icon_federation(
        tmp_path / "icons", client_count=1, alpha=1.0, seed=0, train_count=12, val_count=4, test_count=4
    )[0]
    with connect_proxy(places(federation), caller="site:se cret") as proxy:
        environment = os.environ | {
            "https_proxy": f"http://site:se%20cret@{proxy.address}",
            "FEDNANO_JOIN_TOKEN": token,
        }
        enrolling = ["--aggregator", NAMES["ops"], "--server", NAMES["server"], "--examples", str(examples)]
        command = ["-m", "fednano.cli.main", "client", "enroll", "--out", str(tmp_path / "box"), *enrolling]
        enrolled = run(command, environment)
        assert enrolled.returncode == 0, enrolled.stderr
        lines = (tmp_path / "box/client.env").read_text().splitlines()
        trained = run(["-m", "services.client"], environment | dict(line.split("=", 1) for line in lines))
        assert trained.returncode == 0, trained.stderr
    assert operate(federation, "run", "get", "demo")["state"] == "STATE_SUCCEEDED"
    assert set(proxy.asked) == set(NAMES.values())


def test_what_is_wrong_beyond_the_proxy_is_found_through_it(
    federation: SecureFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = federation.holder(Role.CLIENT, "looker")
    security = Security(tls_ca=folder / "ca.crt", tls_cert=folder / "tls.crt", tls_key=folder / "tls.key")
    with connect_proxy({"other.test:7000": federation.addresses["aggregator"]}) as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
        found = diagnose("other.test:7000", security)
        assert found is not None
        assert found.fault == "wrong_host"
        monkeypatch.setenv("no_proxy", ".test")
        assert diagnose("other.test:7000", security) is None
    assert len(proxy.asked) == 2


def run(command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=RUN_S, check=False
    )
