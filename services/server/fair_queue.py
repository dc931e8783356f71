"""Deficit round robin (Shreedhar & Varghese 1995): who asks for little has his turn, however much others ask for."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Costly(Protocol):
    """Something that waits: whose it is, and how many tokens it takes."""

    @property
    def client(self) -> Hashable: ...

    @property
    def token_count(self) -> int: ...


ItemT = TypeVar("ItemT", bound=Costly)


@dataclass(eq=False)
class _Lane(Generic[ItemT]):
    """One client's items, in the order they came, and the tokens that it may still spend; negative after an advance.

    ``in_turn`` says that the end of a pass interrupted its turn: it goes on with that, and gets no more to spend first.
    """

    items: deque[ItemT] = field(default_factory=deque)
    deficit: int = 0
    in_turn: bool = False


class FairQueue(Generic[ItemT]):
    """Each round gives every client that waits ``quantum`` tokens to spend; what it cannot spend yet it keeps."""

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        # In the order of their turns; a lane without items is not kept.
        self._lanes: dict[Hashable, _Lane[ItemT]] = {}

    def __len__(self) -> int:
        return sum(len(lane.items) for lane in self._lanes.values())

    def __iter__(self) -> Iterator[ItemT]:
        return (item for lane in self._lanes.values() for item in lane.items)

    def push(self, item: ItemT) -> None:
        self._lanes.setdefault(item.client, _Lane()).items.append(item)

    def remove(self, item: ItemT) -> None:
        """Forgets an item that nobody waits for any more; no error where it was taken already."""
        lane = self._lanes.get(item.client)
        if lane is not None and item in lane.items:
            lane.items.remove(item)
            self._drop_if_empty(item.client, lane)

    def take_out_of_turn(self, item: ItemT) -> None:
        """Takes an item for which a pass under way has room anyway; its client pays for it from its next turns."""
        lane = self._lanes[item.client]
        lane.items.remove(item)
        lane.deficit -= item.token_count
        self._drop_if_empty(item.client, lane)

    def take(self, accepts: Callable[[ItemT, list[ItemT]], bool]) -> list[ItemT]:
        """The items of the next pass: ``accepts`` says whether an item may join those taken before it.

        A client whose next item may not keeps its turn.
        """
        taken: list[ItemT] = []
        passed_over: dict[Hashable, _Lane[ItemT]] = {}
        while self._lanes:
            client = next(iter(self._lanes))
            lane = self._lanes.pop(client)
            if not accepts(lane.items[0], taken):
                passed_over[client] = lane
                continue
            self._give_turn(lane, accepts, taken)
            if lane.items:
                (passed_over if lane.in_turn else self._lanes)[client] = lane
        self._lanes = passed_over
        return taken

    def _give_turn(self, lane: _Lane[ItemT], accepts: Callable[[ItemT, list[ItemT]], bool], taken: list[ItemT]) -> None:
        lane.deficit += 0 if lane.in_turn else self._quantum
        lane.in_turn = False
        while lane.items and lane.items[0].token_count <= lane.deficit and not lane.in_turn:
            if accepts(lane.items[0], taken):
                item = lane.items.popleft()
                lane.deficit -= item.token_count
                taken.append(item)
            else:
                lane.in_turn = True

    def _drop_if_empty(self, client: Hashable, lane: _Lane[ItemT]) -> None:
        if not lane.items:
            del self._lanes[client]
