"""The proxy that gRPC would take, read from the environment as gRPC reads it."""

import pytest
from connect_proxy import connect_proxy

from fednano.rpc.tunnel import DIRECT_VARIABLES, PROXY_VARIABLES, connect, proxy_of


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES + DIRECT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_without_a_proxy_connections_are_direct() -> None:
    assert proxy_of("aggregator.test") is None


def test_the_first_of_grpcs_variables_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in reversed(PROXY_VARIABLES):
        monkeypatch.setenv(name, f"http://{name.replace('_', '-')}:3128")
        found = proxy_of("aggregator.test")
        assert found is not None
        assert found.hostname == name.replace("_", "-")


@pytest.mark.parametrize("host", ["a.local.test", "local.test", "10.1.2.3"])
def test_exceptions_are_names_ends_of_names_and_networks(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8, .local.test")
    assert proxy_of(host) is None
    assert proxy_of("192.0.2.1") is not None
    assert proxy_of("elsewhere.test") is not None


def test_a_proxy_that_refuses_is_an_error_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with connect_proxy({}, caller="site:secret") as proxy:
        monkeypatch.setenv("https_proxy", f"http://site:other@{proxy.address}")
        with pytest.raises(OSError, match="407"):
            connect(("aggregator.test", 7000), 5.0)
    assert proxy.turned_away == ["aggregator.test:7000"]
