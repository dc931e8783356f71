import pytest

from fednano.data.example import Example
from fednano.data.scoring import accuracy, is_right, letter_of
from fednano.errors import ExamplesInvalid


def example(answer: str) -> Example:
    return Example(pid="1", images=(), question="What?", answer=answer)


def test_only_the_very_same_text_is_right() -> None:
    examples = [example("3"), example("3"), example("3"), example("3")]
    assert accuracy(["3", " 3", "3.", "three"], examples) == 0.25


def test_predictions_must_be_as_many_as_examples() -> None:
    with pytest.raises(ExamplesInvalid, match="1 predictions for 2 examples"):
        accuracy(["3"], [example("3"), example("4")])


def test_no_examples_have_no_accuracy() -> None:
    with pytest.raises(ExamplesInvalid):
        accuracy([], [])


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("A", "A"),
        (" B\n", "B"),
        ("F", None),
        ("C. the moon", "C"),
        ("C.", None),
        ("C.the moon", None),
        ("The answer is D.", "D"),
        ("The answer is D", None),
        ("The answer is D, I think", "D"),
        ("So. The answer is Z!", "Z"),
        ("The answer is A. The answer is B.", None),
        ("the answer is A.", None),
        ("", None),
    ],
)
def test_letters_are_read_by_the_first_rule_that_applies(prediction: str, letter: str | None) -> None:
    assert letter_of(prediction) == letter


def test_a_letter_beyond_the_choices_is_wrong() -> None:
    two = Example(pid="1", images=(), question="Which?", choices=("x", "y"), answer="B", asks_letter=True)
    assert [is_right(text, two) for text in ("B", "B. y", "A", "C", "The answer is B.", "y")] == [
        True, True, False, False, True, False,
    ]  # fmt: skip
