"""Which decode streams are about to ask for their next positions: a pass costs little more with them than without."""

from collections.abc import Hashable


class DecodeTurns:
    """A stream that was answered comes back as soon as its client has chosen the next token.

    It is awaited for as long as a pass without it would take, so that nobody loses more by waiting than by not waiting.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._pass_s = 0.0
        self._answered_s: dict[Hashable, float] = {}

    def passed(self, pass_s: float) -> None:
        """Notes how long the newest pass took."""
        self._pass_s = pass_s

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
        return max(arrived_s, min(arrived_s, max(self._answered_s.values())) + patience_s)
