"""Meeting the aggregator at an instant of the run that was chosen beforehand, and what can be done to it then."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from service import PATIENCE_S, Service
from sight import Phase, Shape, is_at, is_near, look

LOOK_S = 0.01
# How long a stopped aggregator goes on from one look to the next.
SLICE_S = 0.002

# Gets the aggregator, which stands still, and the folder of its state.
Disturbance = Callable[[Service, Path], Awaitable[None]]


async def kill(aggregator: Service, _state: Path) -> None:
    """SIGKILL; then it is started again."""
    aggregator.kill()
    await aggregator.start()


async def meet(phase: Phase, aggregator: Service, state: Path, shape: Shape) -> None:
    """Returns as soon as the run is seen in ``phase``, with the aggregator stopped there by SIGSTOP.

    A short phase that was missed is met in a later round. Raises AssertionError where the run ends before.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        sight = look(state)
        is_close = sight is not None and (is_at(phase, sight, shape) or (phase.is_short and is_near(sight)))
        if is_close and await _stopped_in(phase, aggregator, state, shape):
            return
        assert sight is None or not sight.is_ended, f"the run ended before it was seen {phase.value}"
        await asyncio.sleep(LOOK_S)
    raise AssertionError(f"the run was not seen {phase.value} within {PATIENCE_S:g} s")


async def _stopped_in(phase: Phase, aggregator: Service, state: Path, shape: Shape) -> bool:
    """Lets the aggregator run for moments only, until it stands still in the phase or is past it."""
    while True:
        aggregator.signal(signal.SIGSTOP)
        while _process_state(aggregator.pid) not in "TZ":
            await asyncio.sleep(0)
        sight = look(state)
        if sight is not None and is_at(phase, sight, shape):
            return True
        aggregator.signal(signal.SIGCONT)
        if sight is None or not is_near(sight):
            return False
        await asyncio.sleep(SLICE_S)


def _process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
