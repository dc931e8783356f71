"""How often, and how many calls at once, one peer may make: judged before anything of a call is read."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

from fednano.errors import ServerBusy

# Peers that are remembered; one that is forgotten begins anew with its whole burst.
MAX_PEERS = 10_000


# A peer that goes on too fast is told of in the audit log once in a while.
NOTE_INTERVAL_S = 60.0
# Lines of the audit log that one peer may cause by being refused, in an instant and over time: strangers must not fill
# its disk.
NOTE_BURST = 60.0
NOTES_PER_S = 1 / 6


class TooManyCalls(ServerBusy):
    """``is_first``: of this peer there was none for a minute."""

    is_first = False


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """``calls_per_s`` over time, ``call_burst`` in an instant, ``calls_at_once`` open, each for one peer."""

    calls_per_s: float
    call_burst: int
    calls_at_once: int


DEFAULT_LIMITS = CallLimits(calls_per_s=500.0, call_burst=2000, calls_at_once=256)


@dataclass
class _Peer:
    """What a peer may still call, as of a time on the monotonic clock, and what it has open."""

    calls: float
    time_s: float
    open: int = 0
    noted_s: float = -inf
    # Lines that it may still cause, as of a time, and how many refusals had none since the last that had.
    notes: float = NOTE_BURST
    notes_s: float = -inf
    left_out: int = 0


class PeerLimits:
    """A bucket for each peer. Not for use outside the event loop."""

    def __init__(self, limits: CallLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    def count(self, key: str) -> None:
        """Takes one call from the peer's bucket. Raises TooManyCalls, with the time until there is one again."""
        limits, peer, now_s = self._limits, self._peer(key), self._clock()
        peer.calls = min(limits.call_burst, peer.calls + (now_s - peer.time_s) * limits.calls_per_s)
        peer.time_s = now_s
        if peer.calls < 1:
            message = f"{key} calls more than {limits.calls_per_s:g} times a second: call again later"
            raise self._refusal(message, peer, (1 - peer.calls) / limits.calls_per_s)
        peer.calls -= 1

    @contextmanager
    def open_call(self, key: str) -> Iterator[None]:
        """Counts the call while the block runs. Raises TooManyCalls where the peer has too many open."""
        peer = self._peer(key)
        if peer.open >= self._limits.calls_at_once:
            raise self._refusal(f"{key} has {peer.open} calls open: end one first", peer, 1.0)
        peer.open += 1
        try:
            yield
        finally:
            peer.open -= 1

    def note_refusal(self, key: str) -> int | None:
        """Whether this refusal of the peer is to be written down: None where not, else how many before it were not."""
        peer = self._peer(key)
        if not self._has_note(peer):
            peer.left_out += 1
            return None
        left_out, peer.left_out = peer.left_out, 0
        return left_out

    def take_note(self, key: str) -> None:
        """Takes a line for what the peer asks and the audit log must have. Raises TooManyCalls."""
        peer = self._peer(key)
        if not self._has_note(peer):
            raise self._refusal(f"{key} asks for this too often: call again later", peer, 1 / NOTES_PER_S)

    def _has_note(self, peer: _Peer) -> bool:
        now_s = self._clock()
        peer.notes = min(NOTE_BURST, peer.notes + (now_s - peer.notes_s) * NOTES_PER_S)
        peer.notes_s = now_s
        if peer.notes < 1:
            return False
        peer.notes -= 1
        return True

    def _refusal(self, message: str, peer: _Peer, retry_after_s: float) -> TooManyCalls:
        refusal, now_s = TooManyCalls(message, retry_after_s=retry_after_s), self._clock()
        refusal.is_first = now_s - peer.noted_s >= NOTE_INTERVAL_S
        if refusal.is_first:
            peer.noted_s = now_s
        return refusal

    def _peer(self, key: str) -> _Peer:
        peer = self._peers.get(key)
        if peer is None:
            self._forget_idle()
            peer = self._peers[key] = _Peer(self._limits.call_burst, self._clock())
        self._peers.move_to_end(key)
        return peer

    def _forget_idle(self) -> None:
        """Makes room for one more: of the peers without an open call, the one that called longest ago goes."""
        if len(self._peers) >= MAX_PEERS:
            idle = next((key for key, peer in self._peers.items() if not peer.open), None)
            if idle is not None:
                del self._peers[idle]
