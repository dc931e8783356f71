"""Artifacts that somebody is about to name in the database: until that is done, nobody may delete them."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager


class ArtifactHolds:
    """By SHA-256. Any thread may call it.

    Bytes that are taken in a second time are found there and not written again. Between that look and the row that
    names them, their deletion for an older row's sake would lose them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def holding(self, sha256s: Collection[str]) -> Iterator[None]:
        """None of these is deleted while the block lasts; it begins when a deletion under way is over."""
        with self._lock:
            self._counts.update(sha256s)
        try:
            yield
        finally:
            with self._lock:
                self._counts.subtract(sha256s)
                for sha256 in sha256s:
                    if not self._counts[sha256]:
                        del self._counts[sha256]

    def keep(self, sha256: str) -> None:
        """It is not deleted for as long as this process lives."""
        with self._lock:
            self._counts[sha256] += 1

    def delete(
        self,
        sha256s: Sequence[str],
        find_needed: Callable[[Sequence[str]], Collection[str]],
        delete: Callable[[Iterable[str]], int],
    ) -> int:
        """What ``delete`` returns for those that are neither held nor found needed; meanwhile nobody begins to hold."""
        with self._lock:
            free = [sha256 for sha256 in sha256s if sha256 not in self._counts]
            needed = set(find_needed(free)) if free else set()
            return delete(sha256 for sha256 in free if sha256 not in needed)
