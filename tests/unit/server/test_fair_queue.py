"""Deficit round robin: turns by tokens, not by requests."""

from collections import Counter
from dataclasses import dataclass

from services.server.fair_queue import FairQueue


@dataclass(frozen=True, kw_only=True)
class Item:
    client: str
    token_count: int
    number: int = 0


def one(_: Item, taken: list[Item]) -> bool:
    return not taken


def up_to(tokens: int):
    return lambda item, taken: sum(other.token_count for other in taken) + item.token_count <= tokens


def filled(*items: Item, quantum: int = 100) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(quantum)
    for item in items:
        queue.push(item)
    return queue


def test_a_client_with_many_requests_gets_one_turn_like_the_others() -> None:
    heavy = [Item(client="heavy", token_count=100, number=number) for number in range(64)]
    queue = filled(*heavy, *(Item(client=f"light-{n}", token_count=100) for n in range(7)))
    first_eight = [queue.take(one)[0].client for _ in range(8)]
    assert Counter(first_eight) == {"heavy": 1, **{f"light-{n}": 1 for n in range(7)}}


def test_tokens_served_are_equal_while_all_wait_however_large_the_requests() -> None:
    sizes = {"large": 1000, "middle": 130, "small": 7}
    queue = filled(*(Item(client=client, token_count=size) for client, size in sizes.items() for _ in range(500)))
    served: Counter[str] = Counter()
    while sum(served.values()) < 9_000:
        (item,) = queue.take(one)
        served[item.client] += item.token_count
    # Nobody is ahead of another by more than the largest request and a quantum.
    assert max(served.values()) - min(served.values()) <= 1100


def test_a_request_larger_than_many_quanta_has_its_turn_at_last() -> None:
    queue = filled(
        Item(client="large", token_count=1000), *(Item(client="small", token_count=100, number=n) for n in range(50))
    )
    order = [queue.take(one)[0].client for _ in range(51)]
    assert 9 <= order.index("large") <= 11


def test_a_pass_takes_what_fits_and_the_rest_keeps_its_turn() -> None:
    queue = filled(*(Item(client=name, token_count=60) for name in "abcd"))
    assert [item.client for item in queue.take(up_to(150))] == ["a", "b"]
    queue.push(Item(client="a", token_count=60))
    assert [item.client for item in queue.take(up_to(150))] == ["c", "d"]
    assert [item.client for item in queue.take(up_to(150))] == ["a"]
    assert len(queue) == 0


def test_who_is_passed_over_for_another_kind_comes_first_in_the_next_pass() -> None:
    queue = filled(*(Item(client=name, token_count=10, number=index % 2) for index, name in enumerate("abcd")))

    def same_kind(item: Item, taken: list[Item]) -> bool:
        return not taken or item.number == taken[0].number

    assert [item.client for item in queue.take(same_kind)] == ["a", "c"]
    queue.push(Item(client="a", token_count=10, number=1))
    assert [item.client for item in queue.take(same_kind)] == ["b", "d", "a"]


def test_who_may_not_join_does_not_hold_up_his_clients_other_requests() -> None:
    stuck, others = Item(client="a", token_count=10), [Item(client="a", token_count=10, number=n) for n in (1, 2)]
    queue = filled(stuck, *others)
    assert queue.take(lambda item, _: item is not stuck) == others
    assert list(queue) == [stuck]


def test_what_is_taken_out_of_turn_is_paid_for_later() -> None:
    extra = Item(client="a", token_count=300)
    queue = filled(extra, *(Item(client=name, token_count=100, number=n) for n in range(4) for name in "ab"))
    queue.take_out_of_turn(extra)
    assert [queue.take(one)[0].client for _ in range(5)] == ["b", "b", "b", "a", "b"]


def test_a_request_that_is_withdrawn_is_never_taken() -> None:
    gone, other = Item(client="a", token_count=10), Item(client="b", token_count=10)
    queue = filled(gone, other)
    queue.remove(gone)
    queue.remove(gone)
    assert queue.take(up_to(100)) == [other]
    assert queue.take(up_to(100)) == []
