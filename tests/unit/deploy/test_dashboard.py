"""The committed dashboard asks for metrics and values that the services have; tests/e2e holds it against a scrape."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fednano.metrics import RpcMetrics, new_registry
from fednano.v1 import run_pb2
from services.aggregator.metrics import RunCollector
from services.aggregator.store.database import Store
from services.client.metrics import ClientMetrics
from services.server.metrics import ServerMetrics

DASHBOARD = Path(__file__).resolve().parents[3] / "deploy" / "monitoring" / "federation.json"
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


@pytest.fixture
def series(tmp_path: Path) -> set[str]:
    """The names of all series that a service may have."""
    registry: CollectorRegistry = new_registry()
    RpcMetrics(registry).show_certificate_end(lambda: 0.0)
    ServerMetrics(registry), ClientMetrics(registry)
    store = Store(f"sqlite:///{tmp_path / 'aggregator.sqlite3'}")
    registry.register(RunCollector(store, tmp_path))
    try:
        return {family.name + suffix for family in registry.collect() for suffix in SUFFIXES[family.type]}
    finally:
        store.close()


def test_every_metric_of_a_query_exists(series: set[str]) -> None:
    asked = {name for query in queries() for name in re.findall(r"\b(?:fednano|process)_\w+", query)}
    assert len(asked) > 20
    assert asked <= series


def test_every_state_of_a_query_exists() -> None:
    states = {
        "fednano_runs": {name.removeprefix("STATE_").lower() for name, _ in run_pb2.Run.State.items()},
        "fednano_clients": {name.removeprefix("STATE_").lower() for name, _ in run_pb2.Client.State.items()},
    }
    asked = [found for query in queries() for found in re.findall(r'(\w+)\{state=~?"([^"]+)"\}', query)]
    assert asked
    for metric, values in asked:
        assert set(values.split("|")) <= states[metric]


def test_every_panel_has_a_place_of_its_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
