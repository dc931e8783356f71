"""Caches take their room from the graphs', which give way; where that is not enough, who asks is refused."""

import pytest
import torch
from joined_steps import nano, ragged_steps
from prometheus_client import CollectorRegistry

from fednano.errors import ServerBusy
from services.server.cache_memory import CacheMemory
from services.server.graph_memory import GraphMemory
from services.server.metrics import ServerMetrics
from services.server.passes import run_forward

POSITION_BYTES = 10


def memories(budget_bytes: int) -> tuple[GraphMemory, CacheMemory, CollectorRegistry]:
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    graphs = GraphMemory(budget_bytes, 1, metrics)
    return graphs, CacheMemory(graphs, POSITION_BYTES, metrics), registry


def test_what_streams_hold_is_counted_and_given_back_when_they_end() -> None:
    _, caches, registry = memories(1000)
    with caches.stream() as one, caches.stream() as other:
        one.resize(30)
        other.resize(20)
        assert registry.get_sample_value("fednano_server_cache_bytes") == 500
        other.resize(5)
        assert caches.held_bytes == 350
    assert caches.held_bytes == 0


def test_over_the_budget_a_stream_is_refused_with_a_time_to_come_back_and_keeps_what_it_has() -> None:
    _, caches, _ = memories(1000)
    with caches.stream() as one, caches.stream() as other:
        one.resize(60)
        other.resize(30)
        with pytest.raises(ServerBusy, match="do not fit") as refused:
            other.resize(41)
        assert refused.value.retry_after_s == 1.0
        assert caches.held_bytes == 900
        other.resize(40)


def test_the_only_stream_is_always_served() -> None:
    graphs, caches, _ = memories(100)
    with caches.stream() as one, caches.stream() as other:
        one.resize(30)
        one.resize(40)
        with pytest.raises(ServerBusy):
            other.resize(1)
        assert not graphs.fits(1)
    with caches.stream() as other:
        other.resize(5)
        assert graphs.fits(50)


def test_the_oldest_graphs_give_way_to_caches() -> None:
    model = nano()
    steps = ragged_steps(model, lengths=[(16,), (16,), (16,)])
    outcomes = [run_forward(model, [step.forward_work], "hidden_states", keeps_graph=True) for step in steps]
    taken = [outcome.graph for outcome in outcomes if outcome.graph is not None]
    graphs, caches, registry = memories(3 * taken[0].size_bytes)
    for graph in taken:
        graphs.keep(graph)
    assert len(taken) == 3
    with caches.stream() as one:
        one.resize(taken[0].size_bytes // POSITION_BYTES)
        assert [bool(graph.members) for graph in taken] == [False, True, True]
        assert registry.get_sample_value("fednano_server_graphs_dropped_total") == 1
        assert graphs.retained_bytes + caches.held_bytes <= 3 * taken[0].size_bytes
    assert torch.is_grad_enabled()
