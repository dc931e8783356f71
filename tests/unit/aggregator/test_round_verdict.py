"""A round waits for those who may still answer, and for nobody else."""

import pytest

from fednano.v1 import run_pb2 as pb
from services.aggregator.round_verdict import is_evaluation_due, is_evaluation_over, is_training_over
from services.aggregator.store.standings import Standing


@pytest.mark.parametrize(
    ("standing", "attempt", "is_over"),
    [
        (Standing(answered=2), 1, True),
        (Standing(answered=2, active=1), 1, False),
        (Standing(answered=2, lost=1, gone=1), 1, True),
        # Too few updates: a lost client may return, one that left for good may not.
        (Standing(answered=1, lost=1), 1, False),
        (Standing(answered=1, gone=1), 1, True),
        # Nobody is left to ask after a second attempt, so its whole time is theirs.
        (Standing(answered=1, gone=1), 2, False),
        (Standing(), 1, True),
    ],
)
def test_training_is_over_when_nobody_awaited_may_still_answer(standing: Standing, attempt: int, is_over: bool) -> None:
    assert is_training_over(standing, min_updates=2, attempt=attempt) == is_over


def test_evaluation_waits_for_active_clients_alone() -> None:
    assert not is_evaluation_over(Standing(answered=1, active=1))
    assert is_evaluation_over(Standing(answered=1, lost=1, gone=1))


def test_the_last_round_and_every_so_many_are_evaluated() -> None:
    config = pb.RunConfig(round_count=5, evaluate=pb.EvaluateConfig(every_rounds=2))
    assert [number for number in range(1, 6) if is_evaluation_due(config, number)] == [2, 4, 5]
