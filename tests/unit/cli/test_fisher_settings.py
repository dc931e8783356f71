"""What a report says of Fisher information: whatever is not the default, and nothing that has no effect."""

import pytest

from fednano.cli.fisher_settings import fisher_settings, fisher_words
from fednano.v1 import run_pb2

Fisher = run_pb2.FisherConfig
LITERAL = Fisher(normalization=Fisher.NORMALIZATION_NONE, max_share=1.0)
CHOSEN = Fisher(normalization=Fisher.NORMALIZATION_L2, floor=1.0)


def words(fisher: run_pb2.FisherConfig, method: str = "fednano", **changes: float) -> str:
    config = run_pb2.RunConfig(method=run_pb2.Method.Value(f"METHOD_{method.upper()}"), fisher=fisher)
    config.fisher.MergeFrom(Fisher(**changes))  # type: ignore[arg-type]
    return fisher_words(fisher_settings(config), method)


def test_the_papers_formula_is_called_so_and_what_was_chosen_is_named() -> None:
    assert words(LITERAL) == "Eq. 1 to the letter"
    assert words(LITERAL, "fednano_ef") == "Eq. 1 to the letter"
    assert words(CHOSEN) == "l2 normalization, floor 1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"power": 0.5}, "none normalization, floor 0, power 0.5, cap 1"),
        ({"moving_average": 0.9}, "none normalization, floor 0, cap 1, moving average 0.9"),
        ({"at": Fisher.POINT_START}, "Eq. 1 to the letter, at the start"),
        ({"kind": Fisher.KIND_MC, "max_examples": 9}, "Eq. 1 to the letter, drawn labels, at most 9 examples"),
    ],
)
def test_each_setting_that_changes_something_is_named(changes: dict[str, float], said: str) -> None:
    assert words(LITERAL, **changes) == said


@pytest.mark.parametrize("fisher", [LITERAL, CHOSEN])
def test_information_that_is_one_is_all_there_is_to_say(fisher: run_pb2.FisherConfig) -> None:
    assert words(fisher, kind=Fisher.KIND_ONES) == "F = 1"
