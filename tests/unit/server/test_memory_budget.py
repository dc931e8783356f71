"""What the server takes for itself, where nobody said how much."""

import pytest
from joined_steps import nano, ragged_steps

from services.server import memory_budget
from services.server.memory_budget import (
    free_host_bytes,
    graph_budget_bytes,
    guessed_row_bytes,
    input_budget_bytes,
    may_pack,
)
from services.server.passes import run_forward


def test_graphs_and_inputs_leave_memory_for_everything_else() -> None:
    # A gigabyte and more: what others take between the looks is small against it.
    free_bytes = free_host_bytes()
    together = 1.7 * graph_budget_bytes(nano()) + input_budget_bytes()
    assert 0 < input_budget_bytes() < graph_budget_bytes(nano())
    assert together < 0.95 * free_bytes


def test_the_guess_before_the_first_pass_is_no_less_than_what_it_takes() -> None:
    model = nano()
    outcome = run_forward(model, [step.forward_work for step in ragged_steps(model)], "logits", keeps_graph=True)
    assert outcome.graph is not None
    rows = len(outcome.graph.inputs_embeds_PD)
    assert outcome.graph.size_bytes <= rows * guessed_row_bytes(model) <= 4 * outcome.graph.size_bytes


def test_weights_are_laid_out_anew_only_where_there_is_room_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nano()
    assert 0 < model.packed_bytes() < 10_000_000
    assert may_pack(model)
    monkeypatch.setattr(memory_budget, "free_host_bytes", lambda: model.packed_bytes(decoding_only=True))
    assert not may_pack(model)
    monkeypatch.undo()
    model.pack()
    assert not may_pack(model)
