"""How many clients are at work: those who asked for something a moment ago are likely to ask again."""

from collections.abc import Hashable

RECENT_S = 1.0


class RecentClients:
    """Remembers each client for a second after it was last seen."""

    def __init__(self) -> None:
        # The one seen last is last.
        self._seen_s: dict[Hashable, float] = {}

    def note(self, client: Hashable, now_s: float) -> None:
        self._seen_s.pop(client, None)
        self._seen_s[client] = now_s

    def count(self, now_s: float) -> int:
        while self._seen_s and now_s - self._seen_s[client := next(iter(self._seen_s))] > RECENT_S:
            del self._seen_s[client]
        return len(self._seen_s)
