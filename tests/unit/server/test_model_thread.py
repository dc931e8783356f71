"""The model's thread: order, bounds, deadlines."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from fednano.errors import NoProgress, ServerBusy
from services.server.model_thread import ModelThread

PATIENCE_S = 10.0


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Work that waits for it holds the thread up; opened at the end, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def make_thread() -> Iterator[Callable[..., ModelThread]]:
    made: list[ModelThread] = []

    def make(*, max_queued: int = 4, timeout_s: float = PATIENCE_S) -> ModelThread:
        made.append(ModelThread(threads=1, max_queued=max_queued, timeout_s=timeout_s))
        return made[-1]

    yield make
    for thread in made:
        thread.close()


async def test_all_work_runs_in_order_in_one_named_thread(make_thread: Callable[..., ModelThread]) -> None:
    thread = make_thread(max_queued=20)
    order: list[int] = []
    names = await asyncio.gather(*(thread.run(partial(_note, order, index)) for index in range(20)))
    assert order == list(range(20))
    assert set(names) == {"model_0"}
    assert await thread.run(torch.get_num_threads) == 1


def _note(order: list[int], index: int) -> str:
    order.append(index)
    return threading.current_thread().name


async def test_what_work_raises_comes_back_and_the_thread_lives_on(make_thread: Callable[..., ModelThread]) -> None:
    thread = make_thread()
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    assert await thread.run(lambda: 7) == 7


async def test_work_over_the_bound_is_refused_at_once_and_places_come_back(
    make_thread: Callable[..., ModelThread], gate: threading.Event
) -> None:
    thread = make_thread(max_queued=2)
    held = [asyncio.create_task(thread.run(lambda: gate.wait(PATIENCE_S))) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(ServerBusy, match="full"):
        await thread.run(lambda: True)
    gate.set()
    assert await asyncio.gather(*held) == [True] * 3
    assert await thread.run(lambda: "again") == "again"


async def test_an_answer_that_takes_too_long_is_not_awaited(
    make_thread: Callable[..., ModelThread], gate: threading.Event
) -> None:
    thread = make_thread(timeout_s=0.1)
    with pytest.raises(NoProgress, match=r"0\.1 s"):
        await thread.run(lambda: gate.wait(PATIENCE_S))


async def test_work_whose_session_has_gone_is_never_begun(
    make_thread: Callable[..., ModelThread], gate: threading.Event
) -> None:
    thread, begun = make_thread(), threading.Event()
    running = asyncio.create_task(thread.run(lambda: gate.wait(PATIENCE_S)))
    waiting = asyncio.create_task(thread.run(begun.set))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    gate.set()
    assert await running
    assert await thread.run(lambda: True)
    assert not begun.is_set()
