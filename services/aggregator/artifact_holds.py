"""Artifacts that somebody is about to name in the database, and those that are being deleted: never both."""

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from fednano.errors import StoreUnavailable

# A deletion from a bucket that hangs has failed by then.
PATIENCE_S = 150.0


class ArtifactHolds:
    """By SHA-256. Any thread may call it.

    Bytes that are taken in a second time are found there and not written again. Between that look and the row that
    names them, their deletion for an older row's sake would lose them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: Counter[str] = Counter()
        self._condemned: set[str] = set()

    @contextmanager
    def holding(self, sha256s: Collection[str]) -> Iterator[None]:
        """None of these is deleted while the block lasts; it begins when a deletion of one under way is over."""
        with self._changed:
            self._hold(sha256s)
        try:
            yield
        finally:
            with self._changed:
                self._held.subtract(sha256s)
                for sha256 in sha256s:
                    if not self._held[sha256]:
                        del self._held[sha256]

    def keep(self, sha256: str) -> None:
        """It is not deleted for as long as this process lives."""
        with self._changed:
            self._hold([sha256])

    @contextmanager
    def condemning(self, sha256s: Sequence[str]) -> Iterator[list[str]]:
        """Those of these that nobody holds; nobody begins to while the block lasts."""
        with self._changed:
            free = [sha256 for sha256 in sha256s if sha256 not in self._held and sha256 not in self._condemned]
            self._condemned.update(free)
        try:
            yield free
        finally:
            with self._changed:
                self._condemned.difference_update(free)
                self._changed.notify_all()

    def _hold(self, sha256s: Collection[str]) -> None:
        if not self._changed.wait_for(lambda: self._condemned.isdisjoint(sha256s), PATIENCE_S):
            raise StoreUnavailable(
                f"artifacts of these bytes have been deleted for {PATIENCE_S:g} s: it is tried again"
            )
        self._held.update(sha256s)
