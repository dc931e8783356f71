"""What the client is doing, shared by the thread that computes and the loop that talks to the aggregator."""

import threading
import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from services.client.metrics import ClientMetrics


class RoundAbandoned(Exception):
    """The aggregator, or who stops this process, no longer wants the work under way."""


@dataclass(kw_only=True)
class Progress:
    """``round`` is empty when idle; ``step`` counts the local steps done in it."""

    abandoned: threading.Event = field(default_factory=threading.Event)
    metrics: ClientMetrics = field(default_factory=lambda: ClientMetrics(CollectorRegistry()))
    round: str = ""
    step: int = 0
    # When the round began, and the step under way.
    begin_s: float = 0.0
    step_begin_s: float = 0.0

    def begin(self, round_name: str) -> None:
        self.abandoned.clear()
        self.round, self.step, self.begin_s = round_name, 0, time.monotonic()

    def start_steps(self, step: int) -> None:
        """Local training goes on after ``step`` steps."""
        self.step, self.step_begin_s = step, time.monotonic()

    def end_step(self, step: int) -> None:
        now_s = time.monotonic()
        self.metrics.step_seconds.observe(now_s - self.step_begin_s)
        self.step, self.step_begin_s = step, now_s

    def end(self) -> None:
        self.round, self.step = "", 0

    def check(self) -> None:
        """Raises RoundAbandoned where the work is no longer wanted. Called once a batch."""
        if self.abandoned.is_set():
            raise RoundAbandoned(self.round)
