"""Shares are of the last minute, and no more labels than ranks."""

from services.server.shares import RANKS, SPAN_S, ClientShares


def test_shares_are_told_by_rank_largest_first() -> None:
    shares = ClientShares()
    shares.note({"a": 10, "b": 60}, 0.0)
    shares.note({"a": 30}, 1.0)
    ranks = shares.by_rank(2.0)
    assert (ranks["1"], ranks["2"], ranks["3"], ranks["rest"]) == (0.6, 0.4, 0.0, 0.0)
    assert shares.client_count(2.0) == 2


def test_a_thousand_clients_have_no_more_labels_than_ten() -> None:
    shares = ClientShares()
    for client in range(1000):
        shares.note({client: 1}, client / 1000)
    ranks = shares.by_rank(1.0)
    assert list(ranks) == [*map(str, range(1, RANKS + 1)), "rest"]
    assert abs(sum(ranks.values()) - 1.0) < 1e-9
    assert ranks["rest"] == 1 - RANKS / 1000


def test_what_was_served_longer_ago_than_a_minute_is_forgotten() -> None:
    shares = ClientShares()
    shares.note({"gone": 1000}, 0.0)
    shares.note({"here": 1}, SPAN_S - 1)
    assert shares.by_rank(SPAN_S + 1)["1"] == 1.0
    assert shares.client_count(SPAN_S + 1) == 1
    assert set(shares.by_rank(10 * SPAN_S).values()) == {0.0}
    assert shares.client_count(10 * SPAN_S) == 0
