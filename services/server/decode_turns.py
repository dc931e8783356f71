"""Which decode streams are about to ask for their next positions: a pass costs little more with them than without."""

from collections.abc import Hashable


class DecodeTurns:
    """A stream that was answered comes back as soon as its client has chosen the next token.

    It is awaited for as long as a pass without it would take, which is what going on without it would cost.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._pass_s = 0.0
        self._free_s = 0.0
        self._answered_s: dict[Hashable, float] = {}

    def passed(self, start_s: float, end_s: float) -> None:
        """Notes the newest pass."""
        self._pass_s, self._free_s = end_s - start_s, end_s

    def answered(self, stream: Hashable, now_s: float) -> None:
        self._answered_s[stream] = now_s

    def forget(self, stream: Hashable) -> None:
        """It has come back, or has gone; no error where it was not awaited."""
        self._answered_s.pop(stream, None)

    def ready_at_s(self, arrived_s: float) -> float:
        """From when on a request that has arrived waits for no other stream."""
        if not self._window_s or not self._answered_s:
            return arrived_s
        patience_s = max(self._window_s, self._pass_s)
        # Before the end of the last pass nobody has waited for anybody.
        since_s = max(arrived_s, self._free_s)
        return max(arrived_s, min(since_s, max(self._answered_s.values())) + patience_s)
