"""What Prometheus sees of one client. Its numbers stay on its machine unless somebody scrapes them."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from fednano.metrics import SECONDS_BUCKETS


class ClientMetrics:
    """One for a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.step_seconds = Histogram(
            "fednano_client_step_seconds",
            "Local steps, the language model's passes included.",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.retries = Counter(
            "fednano_client_retries", "Calls to the aggregator made again after a failure.", registry=registry
        )
        self._rounds = Summary(
            "fednano_client_round_seconds", "From a training task to its acknowledged update.", registry=registry
        )
        self._loss = Gauge("fednano_client_loss", "Mean loss of the newest local training.", registry=registry)
        self._accuracy = Gauge(
            "fednano_client_accuracy", "Newest accuracy on the own test split, or the one chosen.", registry=registry
        )
        self._bytes = Counter(
            "fednano_client_bytes", "Bytes of adapters, Fisher information and passes.", ["kind"], registry=registry
        )

    def trained(self, metrics: Mapping[str, float], seconds: float) -> None:
        """An update was acknowledged, ``seconds`` after its task had come."""
        self._rounds.observe(seconds)
        self._loss.set(metrics["train/loss"])
        self._count(metrics)

    def evaluated(self, accuracy: float, metrics: Mapping[str, float]) -> None:
        self._accuracy.set(accuracy)
        self._count(metrics)

    def _count(self, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            if key.startswith("bytes/"):
                self._bytes.labels(key.removeprefix("bytes/")).inc(value)
