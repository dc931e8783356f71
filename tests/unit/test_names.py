"""Names parse to what they say, and nothing else parses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednano.errors import FieldInvalid
from fednano.names import ID, ClientName, RoundName, RunName, check_id

ids = st.from_regex(ID, fullmatch=True)


@given(run=ids, number=st.integers(0, 10**9 - 1), client=ids)
def test_a_name_parses_back_to_itself(run: str, number: int, client: str) -> None:
    for name in (RunName(run=run), RoundName(run=run, number=number), ClientName(run=run, client=client)):
        assert type(name).parse(str(name)) == name


@pytest.mark.parametrize(
    "text", ["", "runs/", "runs/A", "runs/a/rounds/01", "runs/a/rounds/-1", "runs/../rounds/1", "runs/a\n"]
)
def test_a_wrong_name_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(FieldInvalid) as raised:
        RoundName.parse(text, "round")
    assert raised.value.facts == {"field": "round"}


def test_an_id_cannot_leave_its_folder() -> None:
    with pytest.raises(FieldInvalid):
        check_id("../x", "client_id")
