"""Serving a registry over HTTP, and counting calls."""

import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fednano.errors import SettingsInvalid
from fednano.metrics import RpcMetrics, new_registry, serve_metrics

METHOD = "/fednano.v1.RunService/GetRun"
LABELS = {"service": "fednano.v1.RunService", "method": "GetRun"}


def test_a_registry_can_be_scraped_while_it_is_served() -> None:
    with serve_metrics(new_registry(), "127.0.0.1:0") as address:
        assert "process_cpu_seconds" in families_at(address)
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", int(address.rpartition(":")[2])))


def test_no_address_serves_nothing() -> None:
    with serve_metrics(new_registry(), "") as address:
        assert address == ""


def test_a_port_in_use_is_named() -> None:
    with (
        serve_metrics(new_registry(), "127.0.0.1:0") as address,
        pytest.raises(SettingsInvalid, match=f"--metrics-listen: cannot listen on {address}: Address already in use"),
        serve_metrics(new_registry(), address),
    ):
        pass


@pytest.mark.parametrize("listen", ["9100", "localhost:", "localhost:x", "localhost:70000"])
def test_an_address_of_another_form_is_refused(listen: str) -> None:
    with pytest.raises(SettingsInvalid, match="no host:port"), serve_metrics(new_registry(), listen):
        pass


def test_a_host_that_is_unknown_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match="cannot listen on"), serve_metrics(new_registry(), "256.0.0.1:9100"):
        pass


def test_a_call_is_counted_with_its_code_and_its_reason() -> None:
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    with metrics.call(METHOD):
        assert registry.get_sample_value("fednano_rpc_active", LABELS) == 1
    with metrics.call(METHOD) as outcome:
        outcome.code, outcome.reason = "NOT_FOUND", "RESOURCE_NOT_FOUND"
    with pytest.raises(KeyboardInterrupt), metrics.call(METHOD):
        raise KeyboardInterrupt
    for code in ("OK", "NOT_FOUND", "CANCELLED"):
        assert registry.get_sample_value("fednano_rpc_requests_total", LABELS | {"code": code}) == 1
    reason = {"reason": "RESOURCE_NOT_FOUND"}
    assert registry.get_sample_value("fednano_rpc_refused_total", LABELS | reason) == 1
    assert registry.get_sample_value("fednano_rpc_active", LABELS) == 0
    assert registry.get_sample_value("fednano_rpc_seconds_count", LABELS) == 3


def families_at(address: str) -> set[str]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
        return {family.name for family in text_string_to_metric_families(response.read().decode())}
