"""The room that the caches of decode streams take of the memory for graphs, which give way to them."""

from collections.abc import Iterator
from contextlib import contextmanager

from fednano.errors import ServerBusy
from services.server.graph_memory import GraphMemory
from services.server.metrics import ServerMetrics

RETRY_AFTER_S = 1.0


class CacheMemory:
    """Counts what the buffers of all streams' sequences take, room to grow included."""

    def __init__(self, graphs: GraphMemory, position_bytes: int, metrics: ServerMetrics) -> None:
        self._graphs = graphs
        self._position_bytes = position_bytes
        self.held_bytes = 0
        metrics.cache_bytes.set_function(lambda: self.held_bytes)

    @contextmanager
    def stream(self) -> Iterator["StreamRoom"]:
        """The room of one stream, given back at the end of the block."""
        room = StreamRoom(self)
        try:
            yield room
        finally:
            room.resize(0)

    def resize(self, held: int, wanted: int) -> None:
        """A stream's room, from so many positions to so many.

        Raises ServerBusy where there is not so much, except for the only stream: otherwise it would never be served.
        """
        more_bytes = (wanted - held) * self._position_bytes
        is_only = self.held_bytes == held * self._position_bytes
        if not self._graphs.set_aside(more_bytes, anyway=is_only):
            message = (
                f"decoding holds {self.held_bytes} bytes of caches, and {more_bytes} more do not fit: "
                "decode fewer answers at a time, or try again in a moment"
            )
            raise ServerBusy(message, retry_after_s=RETRY_AFTER_S)
        self.held_bytes += more_bytes


class StreamRoom:
    """What one stream holds, in positions."""

    def __init__(self, memory: CacheMemory) -> None:
        self._memory = memory
        self._positions = 0

    def resize(self, positions: int) -> None:
        """Before the buffers change. Raises ServerBusy where there is no room; then the stream holds what it held."""
        self._memory.resize(self._positions, positions)
        self._positions = positions
