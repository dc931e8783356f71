"""How many bytes of clients' tensors the server takes in at one time: those that come, and those kept for later."""

from fednano.errors import ServerBusy
from services.server.metrics import ServerMetrics

RETRY_AFTER_S = 1.0


class InputBudget:
    """Taken before a tensor is read, given back when it is needed no more."""

    def __init__(self, budget_bytes: int, metrics: ServerMetrics) -> None:
        self._budget_bytes = budget_bytes
        self.held_bytes = 0
        metrics.input_bytes.set_function(lambda: self.held_bytes)

    def take(self, size_bytes: int) -> None:
        """Raises ServerBusy where there is no room, except for the only one: otherwise it would never get any."""
        if self.held_bytes and self.held_bytes + size_bytes > self._budget_bytes:
            message = (
                f"clients' tensors take {self.held_bytes} of {self._budget_bytes} bytes, and {size_bytes} more do not "
                "fit: try again in a moment"
            )
            raise ServerBusy(message, retry_after_s=RETRY_AFTER_S)
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
