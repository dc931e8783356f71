"""What others choose to be called is bounded."""

import pytest

from fednano.errors import FieldInvalid
from services.aggregator.labels import MAX_COUNTS, MAX_LENGTH, check_counts, check_label


def test_a_label_has_a_longest_length() -> None:
    check_label("x" * MAX_LENGTH, "display_name")
    with pytest.raises(FieldInvalid) as raised:
        check_label("x" * (MAX_LENGTH + 1), "display_name")
    assert raised.value.facts == {"field": "display_name"}


def test_counts_are_few_and_have_short_keys() -> None:
    check_counts({"edge": 1, "adapter": 2}, "parameter_counts")
    for wrong in ({str(number): 1 for number in range(MAX_COUNTS + 1)}, {"x" * (MAX_LENGTH + 1): 1}):
        with pytest.raises(FieldInvalid):
            check_counts(wrong, "parameter_counts")
