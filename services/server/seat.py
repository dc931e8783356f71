"""What one session has at the server: its steps, and the room they take. All of it goes with the session."""

import asyncio
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from services.server.graph_memory import KeptStep
from services.server.input_budget import InputBudget
from services.server.loss_pass import LossAnswer
from services.server.passes import Encoded
from services.server.requests import BackwardRequest, DecodeRequest, ForwardRequest, LoneRequest, LossRequest
from services.server.scheduler import Scheduler


class Seat:
    """For one session, whose requests come one after the other. ``client`` is whom fairness is owed to."""

    def __init__(self, scheduler: Scheduler, inputs: InputBudget, client: Hashable) -> None:
        self.client = client
        self._scheduler = scheduler
        self._inputs = inputs
        self._steps: dict[int, KeptStep] = {}
        self._taken_bytes: dict[int, int] = {}

    @property
    def pending_count(self) -> int:
        """Forward passes that await their backward pass."""
        return len(self._steps)

    def pending(self, step_id: int) -> KeptStep | None:
        return self._steps.get(step_id)

    def admit(self, step_id: int, size_bytes: int) -> None:
        """Before a step's tensor is read: room for it until the step is done. Raises ServerBusy where there is none."""
        self._scheduler.check_place()
        self._inputs.take(size_bytes)
        self._taken_bytes[step_id] = size_bytes

    @contextmanager
    def room(self, size_bytes: int) -> Iterator[None]:
        """The same for a tensor that is not kept."""
        self._scheduler.check_place()
        self._inputs.take(size_bytes)
        try:
            yield
        finally:
            self._inputs.give_back(size_bytes)

    async def forward(self, step_id: int, request: ForwardRequest) -> Encoded:
        """The output of a step that was admitted."""
        try:
            answer = await self._scheduler.ask(request)
        except asyncio.CancelledError:
            # The answer may have come in the same moment: nobody will ask for its backward pass.
            if request.answer.done() and not request.answer.cancelled() and request.answer.exception() is None:
                self._scheduler.forget(request.answer.result().step)
            raise
        if request.keeps_graph:
            self._steps[step_id] = answer.step
        else:
            self.discard(step_id)
        return answer.output

    async def backward(self, step_id: int, request: BackwardRequest) -> Encoded:
        """The gradient of the inputs of a pending step, which is done then."""
        try:
            return await self._scheduler.ask(request)
        finally:
            self.discard(step_id)

    async def decode(self, request: DecodeRequest) -> Encoded:
        """The last outputs of a stream's sequences."""
        return await self._scheduler.ask(request)

    def awaits_next(self) -> None:
        """The client has the outputs: its next positions will come as soon as it has chosen them."""
        self._scheduler.expect(self)

    async def loss(self, request: LossRequest) -> LossAnswer:
        return await self._scheduler.ask(request)

    async def alone(self, request: LoneRequest) -> Encoded:
        return await self._scheduler.ask(request)

    def discard(self, step_id: int) -> None:
        """Frees a step; an unknown one is no error."""
        step = self._steps.pop(step_id, None)
        if step is not None:
            self._scheduler.forget(step)
        self._inputs.give_back(self._taken_bytes.pop(step_id, 0))

    def close(self) -> None:
        self._scheduler.expect_no_more(self)
        for step_id in list(self._taken_bytes):
            self.discard(step_id)
