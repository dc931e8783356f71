"""Graphs go when they are used, when nobody awaits them, or, oldest first, when there is no room."""

import torch
from joined_steps import nano, ragged_steps
from prometheus_client import CollectorRegistry

from services.server.graph_memory import Checkpointing, GraphMemory, KeptStep
from services.server.metrics import ServerMetrics
from services.server.passes import ForwardAnswer, run_forward


def kept_steps(count: int, lengths: list[tuple[int, ...]]) -> list[list[KeptStep]]:
    """``count`` groups with one step for each of ``lengths``."""
    model = nano()
    works = [step.forward_work for step in ragged_steps(model, lengths=lengths)]
    outcomes = [run_forward(model, works, "hidden_states", keeps_graph=True) for _ in range(count)]
    return [[answer.step for answer in outcome.answers if isinstance(answer, ForwardAnswer)] for outcome in outcomes]


def memory_of(budget_bytes: int) -> tuple[GraphMemory, CollectorRegistry]:
    registry = CollectorRegistry()
    return GraphMemory(budget_bytes, 1, ServerMetrics(registry)), registry


def size_bytes(step: KeptStep) -> int:
    assert step.graph is not None
    return step.graph.size_bytes


def keep(memory: GraphMemory, steps: list[KeptStep]) -> None:
    assert steps[0].graph is not None
    memory.keep(steps[0].graph)


def test_over_the_budget_the_oldest_graphs_go_and_their_steps_stay() -> None:
    groups = kept_steps(4, [(16,), (9, 3)])
    one = size_bytes(groups[0][0])
    memory, registry = memory_of(int(2.5 * one))
    for group in groups:
        keep(memory, group)
    assert [group[0].graph is not None for group in groups] == [False, False, True, True]
    assert groups[0][1].graph is None
    assert memory.retained_bytes == 2 * one
    assert registry.get_sample_value("fednano_server_graph_bytes") == 2 * one
    assert registry.get_sample_value("fednano_server_graphs_dropped_total") == 2


def test_room_is_made_before_a_pass_of_known_size() -> None:
    groups = kept_steps(2, [(16,)])
    one = size_bytes(groups[0][0])
    memory, _ = memory_of(3 * one)
    for group in groups:
        keep(memory, group)
    memory.make_room(16)
    assert memory.retained_bytes == 2 * one
    memory.make_room(17)
    assert (groups[0][0].graph, memory.retained_bytes) == (None, one)
    assert memory.fits(48)
    assert not memory.fits(49)


def memory_with(checkpointing: Checkpointing) -> GraphMemory:
    """1000 bytes; a row's whole graph takes 10 of them, its layers' inputs 1."""
    metrics = ServerMetrics(CollectorRegistry())
    return GraphMemory(1000, 10, metrics, checkpointing=checkpointing, first_layer_row_bytes=1)


def test_layers_inputs_are_kept_where_a_whole_graph_has_no_room_beside_the_others() -> None:
    memory = memory_with("auto")
    assert [memory.keeping(rows) for rows in (100, 101, 1000, 1001)] == ["whole", "layers", "layers", "nothing"]
    assert memory.fits(1000)
    assert not memory.fits(1001)
    memory.retained_bytes = 900
    assert [memory.keeping(rows) for rows in (10, 11)] == ["whole", "layers"]
    # What is used at once may take all the room, and more only of the layers' inputs.
    assert [memory.keeping_again(rows) for rows in (100, 101, 5000)] == ["whole", "layers", "layers"]


def test_checkpointing_may_be_always_or_never() -> None:
    always, never = memory_with("on"), memory_with("off")
    assert [always.keeping(rows) for rows in (1, 1000, 1001)] == ["layers", "layers", "nothing"]
    assert [never.keeping(rows) for rows in (100, 101)] == ["whole", "nothing"]
    assert [never.keeping_again(rows) for rows in (100, 101)] == ["whole", "whole"]


def test_a_graph_goes_with_the_last_step_that_awaits_it() -> None:
    ((first, second),) = kept_steps(1, [(16,), (8,)])
    memory, _ = memory_of(1 << 30)
    keep(memory, [first, second])
    memory.release(first)
    assert first.graph is None
    assert second.graph is not None
    assert memory.retained_bytes > 0
    memory.release(second)
    memory.release(second)
    assert memory.retained_bytes == 0


def test_a_graph_that_is_alone_too_large_is_not_kept() -> None:
    ((step,),) = kept_steps(1, [(16,)])
    memory, _ = memory_of(size_bytes(step) - 1)
    keep(memory, [step])
    assert step.graph is None
    assert memory.retained_bytes == 0
    torch.testing.assert_close(step.passage.inputs_embeds_SD.shape, torch.Size([16, 128]))
