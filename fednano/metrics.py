"""What Prometheus scrapes: one registry a process, served on a port of its own, and what every gRPC service counts.

docs/metrics.md lists the names. A label's values are bounded: methods, codes and reasons of the contract.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from fednano.errors import SettingsInvalid

# Calls last from a millisecond to the minutes of an upload or a watch.
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
CALL_LABELS = ("service", "method")


def new_registry() -> CollectorRegistry:
    """A registry that has the process's own figures: CPU seconds, memory, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


@contextmanager
def serve_metrics(registry: CollectorRegistry, listen: str) -> Iterator[str]:
    """Serves the registry over HTTP while the block runs; the bound host:port, or "" where ``listen`` is empty.

    Raises SettingsInvalid where the address cannot be listened on.
    """
    if not listen:
        yield ""
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SettingsInvalid(f"--metrics-listen: {listen!r} is no host:port, such as 127.0.0.1:9100")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise SettingsInvalid(f"--metrics-listen: cannot listen on {listen}: {error.strerror}") from None
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Outcome:
    """How a call ended: gRPC's code, and the contract's reason where it was refused."""

    code: str = "OK"
    reason: str = ""


class RpcMetrics:
    """What a gRPC server counts of its calls."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "fednano_rpc_requests", "Calls that have ended.", [*CALL_LABELS, "code"], registry=registry
        )
        self._refused = Counter(
            "fednano_rpc_refused",
            "Calls refused, by the contract's reason.",
            [*CALL_LABELS, "reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            "fednano_rpc_seconds",
            "From a call's begin to its end, a stream's too.",
            CALL_LABELS,
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._active = Gauge(
            "fednano_rpc_active", "Calls that have begun and not ended.", CALL_LABELS, registry=registry
        )
        self._bytes = Counter("fednano_rpc_bytes", "Bytes of messages.", [*CALL_LABELS, "direction"], registry=registry)
        self._registry = registry

    def show_certificate_end(self, end_s: Callable[[], float]) -> None:
        """Once, for a service that has a certificate; ``end_s`` is asked at each scrape."""
        end = Gauge(
            "fednano_certificate_end_timestamp_seconds",
            "When the certificate in use ends, in seconds since 1970.",
            registry=self._registry,
        )
        end.set_function(end_s)

    @contextmanager
    def call(self, method: str) -> Iterator[Outcome]:
        """Counts one call of ``/service/method``; the block sets the outcome where it is not OK."""
        labels, outcome, start_s = _labels(method), Outcome(), time.perf_counter()
        active = self._active.labels(*labels)
        active.inc()
        try:
            yield outcome
        except BaseException:
            # Nobody was refused, so the peer went away or this process stops.
            outcome.code = "CANCELLED" if outcome.code == "OK" else outcome.code
            raise
        finally:
            active.dec()
            self._seconds.labels(*labels).observe(time.perf_counter() - start_s)
            self._requests.labels(*labels, outcome.code).inc()
            if outcome.reason:
                self._refused.labels(*labels, outcome.reason).inc()

    def received(self, method: str) -> Counter:
        return self._bytes.labels(*_labels(method), "received")

    def sent(self, method: str) -> Counter:
        return self._bytes.labels(*_labels(method), "sent")


def _labels(method: str) -> tuple[str, str]:
    """Service and method of a path such as /fednano.v1.RunService/GetRun."""
    service, _, name = method.removeprefix("/").partition("/")
    return service, name
