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
Accepts = Callable[[ItemT, list[ItemT]], bool]


@dataclass(eq=False)
class _Lane(Generic[ItemT]):
    """One client's items, in the order they came, and the tokens that it may still spend; negative after an advance.

    ``in_turn`` says that the end of a pass interrupted its turn: it goes on with that, and gets no more to spend first.
    """

    items: deque[ItemT] = field(default_factory=deque)
    deficit: int = 0
    in_turn: bool = False

    def first(self, accepts: Accepts[ItemT], taken: list[ItemT]) -> ItemT | None:
        """Of those that may join: who may not yet does not hold up the client's other sessions."""
        return next((item for item in self.items if accepts(item, taken)), None)


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

    def take(self, accepts: Accepts[ItemT]) -> list[ItemT]:
        """The items of the next pass: ``accepts`` says whether an item may join those taken before it.

        A client none of whose items may keeps its turn.
        """
        taken: list[ItemT] = []
        passed_over: dict[Hashable, _Lane[ItemT]] = {}
        while self._lanes:
            client = next(iter(self._lanes))
            lane = self._lanes.pop(client)
            keeps_turn = self._give_turn(lane, accepts, taken)
            if lane.items:
                (passed_over if keeps_turn else self._lanes)[client] = lane
        self._lanes = passed_over
        return taken

    def _give_turn(self, lane: _Lane[ItemT], accepts: Accepts[ItemT], taken: list[ItemT]) -> bool:
        """Takes what the lane can pay for. Whether its turn is not over, because of what may not join this pass."""
        item = lane.first(accepts, taken)
        if item is None:
            return True
        lane.deficit += 0 if lane.in_turn else self._quantum
        while item is not None and item.token_count <= lane.deficit:
            lane.items.remove(item)
            lane.deficit -= item.token_count
            taken.append(item)
            item = lane.first(accepts, taken)
        lane.in_turn = item is None
        return lane.in_turn

    def _drop_if_empty(self, client: Hashable, lane: _Lane[ItemT]) -> None:
        if not lane.items:
            del self._lanes[client]
