"""Selection asks as many clients as the run wants, and the same ones each time."""

from fednano.v1 import run_pb2 as pb
from services.aggregator.selection import needed_clients, round_size, select_clients, select_replacements

CLIENTS = ["a", "b", "c", "d", "e"]


def test_the_same_round_draws_the_same_clients_in_any_order() -> None:
    drawn = select_clients(CLIENTS, 3, seed=7, number=2)
    assert drawn == select_clients(CLIENTS[::-1], 3, seed=7, number=2) == sorted(drawn)
    assert len(set(drawn)) == 3


def test_rounds_draw_different_clients() -> None:
    assert len({tuple(select_clients(CLIENTS, 2, seed=7, number=number)) for number in range(20)}) > 3


def test_a_fraction_is_rounded_up_and_never_below_the_updates_that_are_needed() -> None:
    config = pb.RunConfig(client_fraction=0.3, min_updates=2)
    assert [round_size(config, count) for count in (2, 7, 10, 11)] == [2, 3, 3, 4]


def test_a_number_of_clients_wins_over_what_is_there() -> None:
    assert round_size(pb.RunConfig(clients_per_round=4, min_updates=1), 100) == 4


def test_a_round_needs_what_is_set_or_else_what_it_selects_or_else_what_it_merges() -> None:
    assert needed_clients(pb.RunConfig(min_available_clients=5, clients_per_round=3, min_updates=2), 4) == 5
    assert needed_clients(pb.RunConfig(clients_per_round=3, min_updates=2), 0) == 3
    assert needed_clients(pb.RunConfig(client_fraction=0.5, min_updates=2), 0) == 2


def test_a_run_that_lost_clients_goes_on_with_as_many_as_can_end_a_round() -> None:
    assert needed_clients(pb.RunConfig(clients_per_round=3, min_updates=2), 1) == 2


def test_a_second_attempt_asks_new_clients_first() -> None:
    assert select_replacements(CLIENTS, {"a", "b", "c"}, 2, seed=7, number=1) == ["d", "e"]


def test_a_second_attempt_asks_old_clients_again_only_as_far_as_new_ones_lack() -> None:
    chosen = select_replacements(CLIENTS, {"a", "b", "c", "d"}, 2, seed=7, number=1)
    assert "e" in chosen
    assert len(chosen) == 2
