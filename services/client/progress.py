"""What the client is doing, shared by the thread that computes and the loop that talks to the aggregator."""

import threading
from dataclasses import dataclass, field


class RoundAbandoned(Exception):
    """The aggregator, or who stops this process, no longer wants the work under way."""


@dataclass(kw_only=True)
class Progress:
    """``round`` is empty when idle; ``step`` counts the local steps done in it."""

    abandoned: threading.Event = field(default_factory=threading.Event)
    round: str = ""
    step: int = 0

    def begin(self, round_name: str) -> None:
        self.abandoned.clear()
        self.round, self.step = round_name, 0

    def end(self) -> None:
        self.round, self.step = "", 0

    def check(self) -> None:
        """Raises RoundAbandoned where the work is no longer wanted. Called once a batch."""
        if self.abandoned.is_set():
            raise RoundAbandoned(self.round)
