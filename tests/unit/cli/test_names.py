"""Names as people type them."""

import pytest

from fednano.cli.names import client_name, round_name, run_name
from fednano.errors import FieldInvalid


@pytest.mark.parametrize("text", ["demo", "runs/demo"])
def test_a_run_goes_by_both_its_names(text: str) -> None:
    assert str(run_name(text)) == "runs/demo"


@pytest.mark.parametrize("text", ["demo", "runs/demo"])
def test_a_round_is_a_run_and_a_number(text: str) -> None:
    assert str(round_name(text, 3)) == "runs/demo/rounds/3"


@pytest.mark.parametrize("text", ["demo/rounds/3", "runs/demo/rounds/3"])
def test_a_round_may_be_named_whole(text: str) -> None:
    assert str(round_name(text, None)) == "runs/demo/rounds/3"


@pytest.mark.parametrize(
    ("run", "client"),
    [
        ("demo", "client-1"),
        ("runs/demo", "client-1"),
        ("demo", "runs/demo/clients/client-1"),
        ("runs/demo/clients/client-1", ""),
        ("demo/clients/client-1", ""),
    ],
)
def test_a_client_goes_by_all_its_names(run: str, client: str) -> None:
    assert str(client_name(run, client)) == "runs/demo/clients/client-1"


def test_a_name_of_another_form_is_refused() -> None:
    with pytest.raises(FieldInvalid, match="RUN is"):
        run_name("Demo")
