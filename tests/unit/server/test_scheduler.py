"""Which requests share a pass, who is waited for and for how long; and that nobody's bits depend on any of it.

A window of many seconds shows what waits: no test sleeps through one.
"""

import asyncio
import threading

import pytest
import torch
from joined_steps import Step, nano, ragged_steps
from scheduled_steps import (
    PATIENCE_S,
    all_backward,
    all_forward,
    backward,
    bench,
    forward,
    held_up,
    joined_forward,
)

from fednano.errors import FieldInvalid, NoProgress, ServerBusy
from fednano.model.language import LanguageModel
from services.server.passes import Encoded
from services.server.requests import LoneRequest


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return nano()


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    """Of a copy of the model: the other one is for its own thread."""
    return ragged_steps(nano())


async def test_steps_of_all_sessions_share_one_pass_in_either_direction(
    model: LanguageModel, steps: list[Step]
) -> None:
    async with bench(model) as here:
        seats = here.seats(6)
        await all_forward(seats, steps)
        assert here.memory.retained_bytes > 0
        await all_backward(seats, steps)
        assert (here.passes("forward"), here.passes("backward"), here.recomputed()) == (1, 1, 0)
        assert (here.memory.retained_bytes, here.inputs.held_bytes) == (0, 0)
        tokens = sum(step.token_count for step in steps)
        for kind in ("forward", "backward"):
            assert here.value("pass_sequences_sum", kind=kind) == 10
            assert here.value("pass_tokens_sum", kind=kind) == here.value("tokens_total", kind=kind) == tokens
        # The largest of the six has 101 of the 170 tokens.
        assert here.value("client_share", rank="1") == pytest.approx(101 / tokens)
        assert here.value("clients") == 6


async def test_nobody_is_waited_for_where_nobody_else_has_a_session(model: LanguageModel, steps: list[Step]) -> None:
    async with bench(model) as here, asyncio.timeout(PATIENCE_S):
        seat = here.seat()
        await all_forward([seat], steps[:1])
        await all_backward([seat], steps[:1])


async def test_a_window_of_zero_waits_for_nobody(model: LanguageModel, steps: list[Step]) -> None:
    async with bench(model, window_s=0.0) as here, asyncio.timeout(PATIENCE_S):
        seats = here.seats(6)
        await all_forward(seats[:1], steps[:1])
        await all_backward(seats[:1], steps[:1])


async def test_a_request_waits_for_the_window_and_no_longer(model: LanguageModel, steps: list[Step]) -> None:
    async with bench(model, window_s=0.05) as here, asyncio.timeout(PATIENCE_S):
        seats = here.seats(2)
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        await all_forward(seats[:1], steps[:1])
        assert loop.time() - start_s >= 0.05


async def test_without_batching_every_request_has_its_own_pass(model: LanguageModel, steps: list[Step]) -> None:
    async with bench(model, joins=False) as here, asyncio.timeout(PATIENCE_S):
        seats = here.seats(6)
        await all_forward(seats, steps)
        await all_backward(seats, steps)
        assert (here.passes("forward"), here.passes("backward"), here.recomputed()) == (6, 6, 0)


async def test_a_pass_has_at_most_so_many_tokens(model: LanguageModel, steps: list[Step]) -> None:
    async with bench(model, max_joined_tokens=45, window_s=0.0) as here:
        # 16, 3, 1 and 24 tokens; 101, which are too many and so alone; 25.
        seats = here.seats(6)
        await all_forward(seats, steps)
        await all_backward(seats, steps)
        assert (here.passes("forward"), here.passes("backward")) == (3, 3)


async def test_a_client_with_many_sessions_has_no_more_of_a_pass_than_others_at_work(model: LanguageModel) -> None:
    same = ragged_steps(nano(), lengths=[(24,)] * 7)
    async with bench(model, max_joined_tokens=72, window_s=0.0) as here:
        heavy, light = here.seats(6, client="heavy"), here.seat(client="light")
        await all_forward(heavy, same[:6])
        assert here.passes("forward") == 2
        # Half of 72 tokens is one step; the light client is in the first of the passes.
        for seat in heavy:
            seat.close()
        await all_forward([*heavy[:3], light], same[3:])
        assert here.passes("forward") == 5


async def test_most_of_a_group_takes_its_graph_and_a_straggler_is_computed_again(
    model: LanguageModel, steps: list[Step]
) -> None:
    async with bench(model, window_s=0.0) as here:
        seats = here.seats(6)
        await joined_forward(here, seats, steps)
        # All but 16 of 170 tokens are there.
        await all_backward(seats[1:], steps[1:])
        assert (here.passes("backward"), here.recomputed(), here.memory.retained_bytes) == (1, 0, 0)
        await all_backward(seats[:1], steps[:1])
        assert here.recomputed() == 1


async def test_the_first_few_of_a_group_are_computed_again_and_the_others_keep_the_graph(
    model: LanguageModel, steps: list[Step]
) -> None:
    async with bench(model, window_s=0.0) as here:
        seats = here.seats(6)
        await joined_forward(here, seats, steps)
        await all_backward(seats[:2], steps[:2])
        assert here.recomputed() == 2
        assert here.memory.retained_bytes > 0
        await all_backward(seats[2:], steps[2:])
        assert (here.recomputed(), here.memory.retained_bytes) == (2, 0)


async def test_a_group_does_not_wait_for_a_member_whose_session_has_gone(
    model: LanguageModel, steps: list[Step]
) -> None:
    async with bench(model) as here, asyncio.timeout(PATIENCE_S):
        seats = here.seats(3)
        idle = here.seat()
        await joined_forward(here, [*seats, idle], steps[:4])
        waiting = asyncio.gather(*map(backward, seats, steps))
        await asyncio.sleep(0.05)
        idle.close()
        gradients = await waiting
        assert all(torch.equal(grad, step.grad_inputs_SD) for grad, step in zip(gradients, steps[:3], strict=True))
        assert (here.passes("backward"), here.recomputed(), here.memory.retained_bytes) == (1, 0, 0)


@pytest.mark.parametrize("direction", ["forward", "backward"])
async def test_work_of_a_session_that_has_gone_is_not_begun(
    model: LanguageModel, steps: list[Step], direction: str
) -> None:
    async with bench(model, window_s=0.0) as here:
        seat, _ = here.seats(2)
        if direction == "backward":
            await joined_forward(here, [seat], steps[:1])
        before = here.passes(direction)
        gate = threading.Event()
        held = asyncio.create_task(here.scheduler.ask(held_up(gate)))
        await asyncio.sleep(0.01)
        going = asyncio.create_task((forward if direction == "forward" else backward)(seat, steps[0]))
        await asyncio.sleep(0.01)
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        seat.close()
        gate.set()
        await held
        assert here.passes(direction) == before
        assert (here.inputs.held_bytes, here.memory.retained_bytes) == (0, 0)


async def test_a_session_that_goes_as_its_answer_comes_leaves_no_graph(model: LanguageModel, steps: list[Step]) -> None:
    async with bench(model) as here:
        seat = here.seat()
        going = asyncio.create_task(forward(seat, steps[0]))
        await here.until(lambda: here.memory.retained_bytes > 0)
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        seat.close()
        assert (here.inputs.held_bytes, here.memory.retained_bytes) == (0, 0)


async def test_over_the_graph_budget_steps_are_computed_again_and_nobody_can_tell(
    model: LanguageModel, steps: list[Step]
) -> None:
    async with bench(model, graph_bytes=1 << 20, window_s=0.0) as here:
        seats = here.seats(6)
        for _ in range(3):
            await all_forward(seats, steps)
            assert here.memory.retained_bytes <= 1 << 20
            await all_backward(seats, steps)
        assert here.recomputed() >= 3
        assert here.memory.retained_bytes == 0


async def test_over_the_graph_budget_the_layers_inputs_are_kept_and_nobody_can_tell(
    model: LanguageModel, steps: list[Step]
) -> None:
    async with bench(model, graph_bytes=1 << 20, window_s=0.0, checkpointing="auto") as here:
        seats = here.seats(6)
        dropped = []
        for _ in range(3):
            await all_forward(seats, steps)
            assert here.memory.retained_bytes <= 1 << 20
            await all_backward(seats, steps)
            dropped.append((here.value("graphs_dropped_total"), here.recomputed()))
        # The first pass shows what a row takes; from then on nothing has to go.
        assert dropped[0] == dropped[2] == (1, 6)
        assert here.value("checkpointed_total") == 2
        assert here.memory.retained_bytes == 0


async def test_passes_without_a_graph_do_not_share_one_with_those_that_keep_it(
    model: LanguageModel, steps: list[Step]
) -> None:
    async with bench(model, window_s=0.0) as here:
        seats = here.seats(2)
        await asyncio.gather(forward(seats[0], steps[0]), forward(seats[1], steps[1], keeps_graph=False))
        assert here.passes("forward") == 2
        assert seats[1].pending_count == 0


async def test_what_is_wrong_with_one_member_is_told_to_it_alone(model: LanguageModel, steps: list[Step]) -> None:
    wrong = ragged_steps(nano(), lengths=[(7,)])[0]
    wrong.inputs_embeds_SD[0, 0] = torch.nan
    async with bench(model) as here:
        good, bad = here.seats(2)
        output, refusal = await asyncio.gather(forward(good, steps[0]), forward(bad, wrong), return_exceptions=True)
        assert torch.equal(output, steps[0].output_N)
        assert isinstance(refusal, FieldInvalid)
        assert here.passes("forward") == 1


async def test_over_the_bound_of_the_queue_requests_are_refused_at_once(
    model: LanguageModel, steps: list[Step]
) -> None:
    async with bench(model, max_waiting=2) as here:
        seats = here.seats(3)
        waiting = [asyncio.create_task(forward(seat, step)) for seat, step in zip(seats[:2], steps[:2], strict=True)]
        await asyncio.sleep(0)
        with pytest.raises(ServerBusy, match="full"):
            await forward(seats[2], steps[2])
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_answer_that_takes_too_long_is_not_awaited(model: LanguageModel) -> None:
    async with bench(model, timeout_s=0.1) as here:
        gate = threading.Event()
        with pytest.raises(NoProgress, match=r"0\.1 s"):
            await here.scheduler.ask(held_up(gate))
        gate.set()


async def test_a_fault_in_a_pass_reaches_all_its_members_and_the_next_pass_runs(
    model: LanguageModel, steps: list[Step]
) -> None:
    def fail() -> Encoded:
        raise ZeroDivisionError

    async with bench(model) as here:
        with pytest.raises(ZeroDivisionError):
            await here.scheduler.ask(LoneRequest(client="a", token_count=1, run=fail, kind="decode"))
        await all_forward(here.seats(2), steps[:2])
