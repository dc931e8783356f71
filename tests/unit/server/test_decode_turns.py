"""Who is worth a wait while decoding, and for how long."""

from services.server.decode_turns import DecodeTurns


def test_nobody_waits_where_nobody_has_been_answered() -> None:
    assert DecodeTurns(2.0).ready_at_s(10.0) == 10.0


def test_a_request_waits_for_a_stream_that_was_just_answered_and_no_longer_than_a_pass_takes() -> None:
    turns = DecodeTurns(2.0)
    turns.passed(4.0, 9.0)
    turns.answered("a", 9.5)
    assert turns.ready_at_s(10.0) == 14.5


def test_a_short_pass_is_waited_for_as_long_as_the_window() -> None:
    turns = DecodeTurns(2.0)
    turns.passed(8.9, 9.0)
    turns.answered("a", 9.5)
    assert turns.ready_at_s(10.0) == 11.5


def test_a_stream_that_came_back_or_went_is_not_waited_for() -> None:
    turns = DecodeTurns(2.0)
    turns.answered("a", 9.5)
    turns.answered("b", 9.6)
    turns.forget("a")
    turns.forget("b")
    turns.forget("b")
    assert turns.ready_at_s(10.0) == 10.0


def test_a_stream_that_stays_away_is_waited_for_once() -> None:
    turns = DecodeTurns(2.0)
    turns.answered("gone", 5.0)
    assert turns.ready_at_s(10.0) == 10.0


def test_who_came_during_a_pass_waits_for_those_who_were_in_it() -> None:
    turns = DecodeTurns(2.0)
    turns.passed(10.0, 20.0)
    turns.answered("a", 20.5)
    assert turns.ready_at_s(11.0) == 30.0


def test_a_window_of_zero_waits_for_nobody() -> None:
    turns = DecodeTurns(0.0)
    turns.answered("a", 9.9)
    assert turns.ready_at_s(10.0) == 10.0
