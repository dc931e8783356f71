"""One peer's calls: a burst, then as fast as the limit says, and no more than so many at once."""

from collections.abc import Callable

import pytest

from fednano.rpc import limits
from fednano.rpc.limits import CallLimits, PeerLimits, TooManyCalls

FEW = CallLimits(calls_per_s=2.0, call_burst=3, calls_at_once=2)


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refusal(call: Callable[[], None]) -> TooManyCalls:
    with pytest.raises(TooManyCalls) as raised:
        call()
    return raised.value


def test_after_a_burst_calls_come_as_fast_as_the_limit(clock: Clock) -> None:
    peers = PeerLimits(FEW, clock)
    for _ in range(3):
        peers.count("client/a")
    assert refusal(lambda: peers.count("client/a")).retry_after_s == pytest.approx(0.5)
    clock.now_s += 0.5
    peers.count("client/a")
    refusal(lambda: peers.count("client/a"))


def test_one_peers_haste_is_not_anothers(clock: Clock) -> None:
    peers = PeerLimits(FEW, clock)
    for _ in range(3):
        peers.count("client/a")
    peers.count("client/b")


def test_a_call_that_ends_makes_room_for_another(clock: Clock) -> None:
    peers = PeerLimits(FEW, clock)
    with peers.open_call("client/a"):
        with peers.open_call("client/a"), pytest.raises(TooManyCalls, match="2 calls open"):
            peers.open_call("client/a").__enter__()
        with peers.open_call("client/a"):
            pass


def test_a_peers_refusals_are_noted_once_a_minute(clock: Clock) -> None:
    peers = PeerLimits(FEW, clock)
    for _ in range(3):
        peers.count("client/a")
    assert [refusal(lambda: peers.count("client/a")).is_first for _ in range(3)] == [True, False, False]
    clock.now_s += 61
    for _ in range(3):
        peers.count("client/a")
    assert refusal(lambda: peers.count("client/a")).is_first


def test_memory_is_bounded_and_open_calls_are_not_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PEERS", 10)
    peers = PeerLimits(FEW, clock)
    with peers.open_call("client/a"), peers.open_call("client/a"):
        for number in range(100):
            peers.count(f"ipv4:10.0.0.{number}")
        with pytest.raises(TooManyCalls):
            peers.open_call("client/a").__enter__()
    assert len(peers._peers) == 10


def test_lines_of_the_audit_log_come_back_with_time_and_tell_how_many_had_none(clock: Clock) -> None:
    peers = PeerLimits(FEW, clock)
    assert [peers.note_refusal("a") for _ in range(62)] == [0] * 60 + [None, None]
    assert peers.note_refusal("b") == 0
    clock.now_s += 6.1
    assert peers.note_refusal("a") == 2
    assert peers.note_refusal("a") is None
    clock.now_s += 3600
    assert peers.note_refusal("a") == 1
    assert peers.note_refusal("a") == 0


def test_what_must_be_written_down_is_refused_where_the_lines_are_used_up(clock: Clock) -> None:
    peers = PeerLimits(FEW, clock)
    for _ in range(60):
        peers.take_note("a")
    assert refusal(lambda: peers.take_note("a")).retry_after_s == pytest.approx(6)
    clock.now_s += 6.1
    peers.take_note("a")
