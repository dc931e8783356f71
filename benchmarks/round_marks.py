"""How a client, in whatever framework, tells the benchmark that a round has reached it: one datagram, no waiting.

Imported by clients in other virtual environments too: nothing but the standard library here.
"""

import socket
import time
from dataclasses import dataclass
from pathlib import Path

MAX_MARK_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A client was given the work of a round, at ``time_s`` of the machine's monotonic clock."""

    round_number: int
    time_s: float


def send_mark(path: Path, round_number: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(f"{round_number} {time.monotonic()}".encode(), str(path))


def open_marks(path: Path) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(path))
    return receiver


def next_mark(receiver: socket.socket, timeout_s: float) -> Mark | None:
    """None where none came in time."""
    receiver.settimeout(timeout_s)
    try:
        number, time_s = receiver.recv(MAX_MARK_BYTES).decode().split()
    except TimeoutError:
        return None
    return Mark(round_number=int(number), time_s=float(time_s))
