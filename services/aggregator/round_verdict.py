"""When a round has waited enough: the rules, without the waiting."""

from fednano.v1 import run_pb2 as pb
from services.aggregator.store.standings import Standing


def is_training_over(standing: Standing, *, min_updates: int, attempt: int) -> bool:
    """Whether to wait for no more updates before the deadline.

    Nobody waits for clients that are lost or gone once there are enough updates. Where there are too few, lost ones
    may still return; where none may, a first attempt is over, for others can be asked.
    """
    if standing.active:
        return False
    if standing.answered >= min_updates:
        return True
    return attempt == 1 and not standing.lost


def is_evaluation_over(standing: Standing) -> bool:
    """Whether to wait for no more evaluations before the deadline: clients that are lost or gone hold nobody up."""
    return not standing.active


def is_evaluation_due(config: pb.RunConfig, number: int) -> bool:
    """Whether round ``number`` evaluates what it merged. The last one always does."""
    every = config.evaluate.every_rounds
    return number == config.round_count or (every > 0 and number % every == 0)
