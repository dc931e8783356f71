from pathlib import Path

import pytest

from fednano.data.example import Example
from fednano.data.scoring import accuracy, accuracy_by_skill
from fednano.errors import ExamplesInvalid


def example(answer: str, *skills: str) -> Example:
    return Example(pid="1", image=Path("image.png"), question="What?", choices=(), answer=answer, skills=skills)


def test_only_the_very_same_text_is_right() -> None:
    examples = [example("3"), example("3"), example("3"), example("3")]
    assert accuracy(["3", " 3", "3.", "three"], examples) == 0.25


def test_an_example_counts_for_each_of_its_skills() -> None:
    examples = [example("3", "counting", "scene"), example("left", "spatial", "scene")]
    assert accuracy_by_skill(["3", "right"], examples) == {"counting": 1.0, "scene": 0.5, "spatial": 0.0}


def test_predictions_must_be_as_many_as_examples() -> None:
    with pytest.raises(ExamplesInvalid, match="1 predictions for 2 examples"):
        accuracy(["3"], [example("3"), example("4")])


def test_no_examples_have_no_accuracy() -> None:
    with pytest.raises(ExamplesInvalid):
        accuracy([], [])
