"""Sessions at a scheduler of their own, without a network between them.

S: tokens of a packed batch   N: output positions   D: hidden size
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import torch
from joined_steps import Step, arrived, decoded
from prometheus_client import CollectorRegistry
from torch import Tensor

from fednano.model.language import LanguageModel
from services.server.graph_memory import Checkpointing, GraphMemory
from services.server.input_budget import InputBudget
from services.server.metrics import ServerMetrics
from services.server.model_thread import ModelThread
from services.server.passes import BackwardWork, Encoded
from services.server.requests import BackwardRequest, ForwardRequest, LoneRequest
from services.server.scheduler import Scheduler, SchedulerTerms
from services.server.seat import Seat

# A window so long that who waits for it does not finish.
LONG_S = 30.0
PATIENCE_S = 20.0


@dataclass(kw_only=True)
class Bench:
    """A scheduler with all that it needs, and what it counts."""

    scheduler: Scheduler
    memory: GraphMemory
    inputs: InputBudget
    thread: ModelThread
    registry: CollectorRegistry
    sessions: AsyncExitStack

    def seat(self, client: Hashable = None) -> Seat:
        """A session of ``client``, or of somebody new."""
        seat = Seat(self.scheduler, self.inputs, client=client or object())
        self.sessions.enter_context(self.scheduler.session())
        return seat

    def seats(self, count: int, client: Hashable = None) -> list[Seat]:
        return [self.seat(client) for _ in range(count)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Looks at every turn of the loop, so that nothing that follows from the condition has happened yet."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0)

    def passes(self, kind: str) -> float:
        return self.registry.get_sample_value("fednano_server_pass_seconds_count", {"kind": kind}) or 0.0

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"fednano_server_{name}", labels) or 0.0

    def abandoned(self, kind: str) -> float:
        return self.value("abandoned_total", kind=kind)

    def recomputed(self) -> float:
        return self.registry.get_sample_value("fednano_server_recomputed_total") or 0.0


@asynccontextmanager
async def bench(
    model: LanguageModel,
    *,
    window_s: float = LONG_S,
    joins: bool = True,
    max_joined_tokens: int = 4096,
    max_waiting: int = 64,
    graph_bytes: int = 1 << 30,
    timeout_s: float = PATIENCE_S,
    checkpointing: Checkpointing = "off",
) -> AsyncIterator[Bench]:
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    thread = ModelThread(threads=1, max_queued=4, timeout_s=PATIENCE_S, metrics=metrics)
    memory = GraphMemory(graph_bytes, 1, metrics, checkpointing=checkpointing)
    terms = SchedulerTerms(
        joins=joins,
        window_s=window_s,
        max_joined_tokens=max_joined_tokens,
        max_waiting=max_waiting,
        timeout_s=timeout_s,
    )
    async with AsyncExitStack() as sessions:
        sessions.callback(thread.close)
        yield Bench(
            scheduler=Scheduler(model, thread, memory, terms),
            memory=memory,
            inputs=InputBudget(1 << 30, metrics),
            thread=thread,
            registry=registry,
            sessions=sessions,
        )


async def forward(seat: Seat, step: Step, step_id: int = 1, *, keeps_graph: bool = True) -> Tensor:
    seat.admit(step_id, 1)
    request = ForwardRequest(
        client=seat.client,
        token_count=step.token_count,
        work=step.forward_work,
        output_kind="hidden_states",
        keeps_graph=keeps_graph,
    )
    return decoded(await seat.forward(step_id, request))


async def backward(seat: Seat, step: Step, step_id: int = 1) -> Tensor:
    kept = seat.pending(step_id)
    assert kept is not None
    work = BackwardWork(step=kept, gradient=arrived(step.grad_output_N))
    request = BackwardRequest(client=seat.client, token_count=step.token_count, work=work)
    return decoded(await seat.backward(step_id, request))


async def all_forward(seats: Sequence[Seat], steps: Sequence[Step]) -> None:
    outputs = await asyncio.gather(*map(forward, seats, steps))
    assert all(torch.equal(output, step.output_N) for output, step in zip(outputs, steps, strict=True))


async def all_backward(seats: Sequence[Seat], steps: Sequence[Step]) -> None:
    gradients = await asyncio.gather(*map(backward, seats, steps))
    assert all(torch.equal(grad, step.grad_inputs_SD) for grad, step in zip(gradients, steps, strict=True))


async def joined_forward(here: Bench, seats: Sequence[Seat], steps: Sequence[Step]) -> None:
    """One pass for all, whatever the window: they arrive while the thread is held up."""
    gate = threading.Event()
    held = asyncio.create_task(here.scheduler.ask(held_up(gate)))
    await asyncio.sleep(0.01)
    forwards = asyncio.gather(*map(forward, seats, steps))
    await asyncio.sleep(0)
    gate.set()
    outputs = await forwards
    await held
    assert here.passes("forward") == 1
    assert all(torch.equal(output, step.output_N) for output, step in zip(outputs, steps, strict=True))


def held_up(gate: threading.Event) -> LoneRequest:
    encoded = arrived(torch.zeros(1))

    def wait() -> Encoded:
        gate.wait(PATIENCE_S)
        return encoded.spec, memoryview(encoded.payload)

    return LoneRequest(client="somebody", token_count=1, run=wait, kind="decode")
