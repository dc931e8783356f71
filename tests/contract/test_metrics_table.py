"""docs/metrics.md names the metrics that the services have, each with its type and labels, and no others."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fednano.metrics import RpcMetrics, new_registry
from services.aggregator.metrics import RunCollector
from services.aggregator.store.database import Store
from services.client.metrics import ClientMetrics
from services.server.metrics import ServerMetrics

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| (`fednano_\w+`[^|]*) \| (\w+) \|", re.MULTILINE)


def documented() -> dict[str, str]:
    """The type of each name; a second name of a row is short for the first one with another end."""
    found = {}
    for names, kind in ROW.findall(DOCUMENT.read_text()):
        first, *others = re.findall(r"`(\w+)`", names)
        found[first] = kind
        for other in others:
            is_end = other.startswith("_")
            # `fednano_server_pass_sequences`, `_pass_tokens`: the first's beginning, up to where the end's begins.
            found[first[: first.index(other.split("_")[1]) - 1] + other if is_end else other] = kind
    return found


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[CollectorRegistry]:
    made = new_registry()
    RpcMetrics(made).show_certificate_end(lambda: 0.0)
    ServerMetrics(made), ClientMetrics(made)
    store = Store(f"sqlite:///{tmp_path / 'aggregator.sqlite3'}")
    made.register(RunCollector(store, tmp_path))
    yield made
    store.close()


def test_the_table_is_that_of_the_code(registry: CollectorRegistry) -> None:
    there = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in registry.collect()
        if family.name.startswith("fednano_")
    }
    assert documented() == there
