"""What is taken in at one time is bounded, and nothing waits for ever."""

import pytest
from prometheus_client import CollectorRegistry

from fednano.errors import ServerBusy
from services.server.input_budget import RETRY_AFTER_S, InputBudget
from services.server.metrics import ServerMetrics


def test_what_does_not_fit_beside_the_others_is_told_to_come_back() -> None:
    registry = CollectorRegistry()
    budget = InputBudget(100, ServerMetrics(registry))
    budget.take(60)
    budget.take(40)
    with pytest.raises(ServerBusy, match="1 more do not fit") as refused:
        budget.take(1)
    assert refused.value.retry_after_s == RETRY_AFTER_S
    assert registry.get_sample_value("fednano_server_input_bytes") == 100
    budget.give_back(60)
    budget.take(50)
    assert budget.held_bytes == 90


def test_what_is_too_large_by_itself_has_its_turn_when_it_is_the_only_one() -> None:
    budget = InputBudget(100, ServerMetrics(CollectorRegistry()))
    budget.take(1000)
    with pytest.raises(ServerBusy):
        budget.take(1)
    budget.give_back(1000)
    budget.take(1)
