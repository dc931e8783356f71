"""Which part of the server each client has had of late, told by rank: bounded in number, and without a name."""

import threading
from collections import Counter, deque
from collections.abc import Hashable, Mapping

SPAN_S = 60.0
SLICE_S = 5.0
RANKS = 8
REST = "rest"


class ClientShares:
    """Tokens of each client over the last minute. Written by the event loop, read by whoever scrapes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Oldest first: from when on, and the tokens of each client from then on.
        self._slices: deque[tuple[float, Counter[Hashable]]] = deque()

    def note(self, tokens: Mapping[Hashable, int], now_s: float) -> None:
        with self._lock:
            if not self._slices or now_s - self._slices[-1][0] >= SLICE_S:
                self._slices.append((now_s, Counter()))
            self._slices[-1][1].update(tokens)
            self._forget(now_s)

    def by_rank(self, now_s: float) -> dict[str, float]:
        """The parts, that of the client with most tokens as "1"; those after the last rank together as "rest"."""
        with self._lock:
            self._forget(now_s)
            sums: Counter[Hashable] = sum((counts for _, counts in self._slices), Counter())
        ordered = sorted(sums.values(), reverse=True)
        total = sum(ordered) or 1
        shares = {str(rank): count / total for rank, count in enumerate(ordered[:RANKS], 1)}
        empty = {str(rank): 0.0 for rank in range(1, RANKS + 1)}
        return empty | shares | {REST: sum(ordered[RANKS:]) / total}

    def client_count(self, now_s: float) -> int:
        with self._lock:
            self._forget(now_s)
            return len(set().union(*(counts for _, counts in self._slices)))

    def _forget(self, now_s: float) -> None:
        while self._slices and now_s - self._slices[0][0] > SPAN_S:
            self._slices.popleft()
