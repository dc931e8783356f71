"""Killing the aggregator at an instant of the run's life that was chosen beforehand."""

import asyncio
import signal
import time
from pathlib import Path

from service import PATIENCE_S, Service
from sight import Phase, Shape, Sight, is_at, is_near, look

LOOK_S = 0.01
# How long a stopped aggregator goes on from one look to the next.
SLICE_S = 0.002


async def kill_at(phase: Phase, aggregator: Service, state: Path, shape: Shape) -> Sight:
    """SIGKILL as soon as the run is seen in ``phase``; returns what the database says after the kill.

    A short phase that was missed is met in a later round. Raises AssertionError where the run ends before.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        sight = look(state)
        if phase.is_short and sight is not None and is_near(sight, shape):
            sight = await _in_slices(phase, aggregator, state, shape)
        if sight is not None and is_at(phase, sight, shape):
            aggregator.kill()
            return look(state) or sight
        assert sight is None or not sight.is_ended, f"the run ended before it was seen {phase.value}"
        await asyncio.sleep(LOOK_S)
    raise AssertionError(f"the run was not seen {phase.value} within {PATIENCE_S:g} s")


async def _in_slices(phase: Phase, aggregator: Service, state: Path, shape: Shape) -> Sight | None:
    """Lets the aggregator run for moments only; it stands still where it is in the phase."""
    while True:
        aggregator.signal(signal.SIGSTOP)
        await _stopped(aggregator.pid)
        sight = look(state)
        if sight is not None and is_at(phase, sight, shape):
            return sight
        aggregator.signal(signal.SIGCONT)
        if sight is None or not is_near(sight, shape):
            return sight
        await asyncio.sleep(SLICE_S)


async def _stopped(pid: int) -> None:
    while _process_state(pid) not in "TZ":
        await asyncio.sleep(0)


def _process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
