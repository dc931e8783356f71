"""Whether a prediction is right: texts must be equal, as in IconQA; letters are read as LLaVA does for ScienceQA."""

import re
from collections.abc import Sequence

from fednano.data.example import Example
from fednano.errors import ExamplesInvalid

LETTERS = "ABCDE"


def is_right(prediction: str, example: Example) -> bool:
    if example.asks_letter:
        letter = letter_of(prediction)
        return letter is not None and letter in LETTERS[: len(example.choices)] and letter == example.answer
    return prediction == example.answer


def letter_of(prediction: str) -> str | None:
    """The letter that an answer gives, by the first rule of LLaVA's ``eval_science_qa.py`` that applies.

    The whole text is one of A to E; or it begins with one and ". "; or "The answer is X" and any one more character
    is in it exactly once. None where no rule applies, which counts as wrong.
    """
    text = prediction.strip()
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    # The dot at the end stands for any character: so it is in the script that everyone compares with.
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else None


def accuracy(predictions: Sequence[str], examples: Sequence[Example]) -> float:
    """The share of examples answered right, in the order of ``examples``."""
    if not examples or len(predictions) != len(examples):
        message = f"{len(predictions)} predictions for {len(examples)} examples: give one for each of at least one"
        raise ExamplesInvalid(message)
    return sum(map(is_right, predictions, examples)) / len(examples)
