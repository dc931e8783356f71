"""A pass that nobody waits for any more ends between two layers."""

import asyncio
import threading

import pytest
import torch
from joined_steps import Step, nano, ragged_steps
from scheduled_steps import PATIENCE_S, backward, bench, forward, joined_forward

from fednano.model.language import LanguageModel


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    return ragged_steps(nano())


class LayerGate:
    """Holds up the model's thread at the second layer that a pass comes to, and counts the layers it comes to."""

    def __init__(self, model: LanguageModel, direction: str) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.begun = 0
        for layer in model._model.base_model.layers:
            if direction == "forward":
                layer.register_forward_pre_hook(self._note)
            else:
                layer.register_full_backward_pre_hook(self._note)

    def _note(self, *_: object) -> None:
        self.begun += 1
        if self.begun == 2:
            self.entered.set()
            self.leave.wait(PATIENCE_S)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("leaving", [1, 2])
async def test_a_pass_ends_within_one_layer_when_nobody_is_left_to_wait_for_it(
    steps: list[Step], direction: str, leaving: int
) -> None:
    model = nano()
    async with bench(model) as here:
        seats = here.seats(2)
        gate = LayerGate(model, direction)
        if direction == "backward":
            await joined_forward(here, seats, steps[:2])
        before = here.passes(direction)
        act = forward if direction == "forward" else backward
        tasks = [asyncio.create_task(act(seat, step)) for seat, step in zip(seats, steps, strict=False)]
        await here.until(gate.entered.is_set)
        for task in tasks[:leaving]:
            task.cancel()
        await asyncio.gather(*tasks[:leaving], return_exceptions=True)
        gate.leave.set()
        if leaving == 2:
            await here.until(lambda: here.abandoned(direction) == 1)
            assert (gate.begun, here.passes(direction)) == (2, before)
        else:
            wanted = steps[1].output_N if direction == "forward" else steps[1].grad_inputs_SD
            assert torch.equal(await tasks[1], wanted)
            assert (gate.begun, here.passes(direction)) == (model.layer_count, before + 1)
        for seat in seats:
            seat.close()
        assert (here.inputs.held_bytes, here.memory.retained_bytes) == (0, 0)
