"""A container's health check: it asks the service that has its own settings, with that service's certificate."""

import asyncio
from pathlib import Path

import pytest

from fednano.config import ServiceSettings
from fednano.errors import PeerUnavailable
from fednano.rpc.probe import main, own_address, probe
from fednano.rpc.server import serving
from fednano.security.authority import create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role


def settings(folder: Path, listen: str) -> ServiceSettings:
    """Certificates for a name that this machine does not have."""
    authority, _ = create_authority(folder)
    files = authority.issue(Subject(role=Role.SERVER, id="server", hosts=("llm.example.org",)))
    return ServiceSettings(
        listen=listen, tls_ca=files / "ca.crt", tls_cert=files / "tls.crt", tls_key=files / "tls.key"
    )


async def test_a_service_that_serves_is_healthy_until_it_stops(tmp_path: Path) -> None:
    asked = settings(tmp_path, "127.0.0.1:0")
    async with serving({}, asked.listen, asked.security, grace_s=0.0) as running:
        serves = asked.model_copy(update={"listen": running.address})
        await asyncio.to_thread(probe, serves)
        await running.health.enter_graceful_shutdown()
        with pytest.raises(PeerUnavailable, match="is NOT_SERVING"):
            await asyncio.to_thread(probe, serves)
    with pytest.raises(PeerUnavailable, match="does not answer"):
        await asyncio.to_thread(probe, serves)


async def test_a_service_whose_certificate_has_ended_is_said_to_be_that(tmp_path: Path) -> None:
    asked = settings(tmp_path, "127.0.0.1:0")
    async with serving({}, asked.listen, asked.security, grace_s=0.0) as running:
        authority, _ = create_authority(tmp_path)
        ended = authority.issue(Subject(role=Role.SERVER, id="server", hosts=("llm.example.org",)), days=-0.001)
        files = {"tls_cert": ended / "tls.crt", "tls_key": ended / "tls.key", "listen": running.address}
        with pytest.raises(PeerUnavailable, match=r"its certificate in .* ended at .* `fednano certs issue` renews it"):
            await asyncio.to_thread(probe, asked.model_copy(update=files))


def test_plaintext_is_asked_in_plaintext_and_nobody_there_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["probe", "--insecure", "--listen", "127.0.0.1:1"])
    assert main() == 1
    assert "127.0.0.1:1 does not answer" in capsys.readouterr().err


def test_wrong_settings_are_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["probe", "--tls-ca", "ca.crt"])
    assert main() == 2


@pytest.mark.parametrize(
    ("listen", "address"),
    [("0.0.0.0:7000", "localhost:7000"), ("[::]:7000", "localhost:7000"), ("10.0.0.7:7000", "10.0.0.7:7000")],
)
def test_every_address_is_asked_at_this_machines_own(listen: str, address: str) -> None:
    assert own_address(listen) == address
