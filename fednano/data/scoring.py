"""Scoring as IconQA does it: exact equality of texts; an example counts for each of its skills."""

from collections import defaultdict
from collections.abc import Sequence

from fednano.data.example import Example
from fednano.errors import ExamplesInvalid


def is_exact_match(prediction: str, example: Example) -> bool:
    return prediction == example.answer


def accuracy(predictions: Sequence[str], examples: Sequence[Example]) -> float:
    """The share of examples answered exactly, in the order of ``examples``."""
    matches = _matches(predictions, examples)
    return sum(matches) / len(matches)


def accuracy_by_skill(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """An example with several skills counts for each. Skills without examples are absent; sorted by name."""
    matches_of: dict[str, list[bool]] = defaultdict(list)
    for match, example in zip(_matches(predictions, examples), examples, strict=True):
        for skill in example.skills:
            matches_of[skill].append(match)
    return {skill: sum(matches) / len(matches) for skill, matches in sorted(matches_of.items())}


def _matches(predictions: Sequence[str], examples: Sequence[Example]) -> list[bool]:
    if not examples or len(predictions) != len(examples):
        message = f"{len(predictions)} predictions for {len(examples)} examples: give one for each of at least one"
        raise ExamplesInvalid(message)
    return [is_exact_match(prediction, example) for prediction, example in zip(predictions, examples, strict=True)]
