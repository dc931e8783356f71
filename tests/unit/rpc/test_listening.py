"""An address that cannot be listened on, or a certificate that is not there, is told before it is needed."""

import socket
from pathlib import Path

import pytest

from fednano.config import Security
from fednano.errors import FednanoError, PeerUnavailable, SettingsInvalid
from fednano.rpc.listening import check_can_serve

PLAINTEXT = Security(insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104
def test_a_free_address_stays_free(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for _ in range(2):
        check_can_serve(f"{host}:{port}", PLAINTEXT)
    check_can_serve(f"{host}:0", PLAINTEXT)


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PeerUnavailable, match=f"cannot listen on {listen}: Address already in use"):
            check_can_serve(listen, PLAINTEXT)


def test_a_host_that_is_not_this_machine_is_named() -> None:
    with pytest.raises(PeerUnavailable, match=r"cannot listen on 192\.0\.2\.1:50051"):
        check_can_serve("192.0.2.1:50051", PLAINTEXT)


def test_no_port_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsInvalid, match="is no host:port"):
        check_can_serve("127.0.0.1", PLAINTEXT)


def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    security = Security(tls_cert=tmp_path / "tls.crt", tls_key=tmp_path / "tls.key", tls_ca=tmp_path / "ca.crt")
    with pytest.raises(FednanoError, match=r"tls\.(crt|key)|ca\.crt"):
        check_can_serve("127.0.0.1:0", security)
