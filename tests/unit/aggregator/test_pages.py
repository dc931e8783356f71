"""Pages go on after the last thing shown, whatever was added meanwhile."""

import pytest

from fednano.errors import FieldInvalid
from services.aggregator.pages import page


def test_a_page_ends_with_the_key_of_its_last_thing_where_there_are_more() -> None:
    assert page(2, "").cut(["a", "b", "c"], str.upper) == (["a", "b"], "B")
    assert page(2, "").cut(["a", "b"], str.upper) == (["a", "b"], "")
    assert page(2, "").cut([], str.upper) == ([], "")


def test_sizes_have_a_default_and_a_bound() -> None:
    assert [page(size, "").size for size in (0, 5, 1000)] == [20, 5, 100]
    with pytest.raises(FieldInvalid):
        page(-1, "")


@pytest.mark.parametrize("token", ["x", "-1", "9" * 30, "\u0661"])
def test_a_token_that_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(FieldInvalid):
        page(1, token).after_number(0)


def test_a_token_of_a_name_has_the_form_of_one() -> None:
    assert page(1, "client-7").after_id == "client-7"
    with pytest.raises(FieldInvalid):
        _ = page(1, "../x").after_id
