"""A whole split's scores, with the breakdowns that the authors of ScienceQA and of IconQA publish."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fednano.data.example import Example
from fednano.data.folder import ExampleFolder
from fednano.data.iconqa import IconQaFolder
from fednano.data.scienceqa import Problem, ScienceQaFolder, read_problems
from fednano.data.scoring import LETTERS, is_right, letter_of

UPPER_GRADE = 7
_GROUPS: Mapping[str, Callable[[Problem], bool]] = MappingProxyType(
    {
        "NAT": lambda problem: problem.subject == "natural science",
        "SOC": lambda problem: problem.subject == "social science",
        "LAN": lambda problem: problem.subject == "language science",
        "TXT": lambda problem: bool(problem.hint),
        "IMG": lambda problem: problem.image is not None,
        "NO": lambda problem: not problem.hint and problem.image is None,
        "G1-6": lambda problem: problem.grade_number < UPPER_GRADE,
        "G7-12": lambda problem: problem.grade_number >= UPPER_GRADE,
    }
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A group of problems and how many of them were answered right."""

    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


def scienceqa_scores(problems: Mapping[str, Problem], predictions: Mapping[str, str]) -> dict[str, Score]:
    """Scores by group; a group without problems is absent.

    ``all`` and ``IMG prompts`` as LLaVA's script counts them: a problem without a prediction is wrong, and is none of
    the prompts with an image; a prediction for no problem counts for nothing. The others as the authors'
    ``evaluate_acc.py``: subjects NAT, SOC, LAN; context TXT (a hint), IMG (an image), NO (neither), which overlap; and
    grades G1-6, G7-12.
    """
    right = {pid: _chose(problem, predictions.get(pid, "")) for pid, problem in problems.items()}
    prompted = [pid for pid, problem in problems.items() if problem.image is not None and pid in predictions]
    scores = {"all": _score(right.values()), "IMG prompts": _score(right[pid] for pid in prompted)}
    for name, belongs in _GROUPS.items():
        scores[name] = _score(right[pid] for pid, problem in problems.items() if belongs(problem))
    return _present(scores)


def iconqa_scores(examples: Iterable[Example], predictions: Mapping[str, str]) -> dict[str, Score]:
    """Scores by sub-task, over all problems (``all``) and by skill; a problem counts for each of its skills.

    A problem without a prediction is wrong. Groups without problems are absent.
    """
    listed = list(examples)
    right = {each.pid: each.pid in predictions and is_right(predictions[each.pid], each) for each in listed}
    scores = {"all": _score(right.values())}
    for task in sorted({each.task for each in listed}):
        scores[task] = _score(right[each.pid] for each in listed if each.task == task)
    for skill in sorted({skill for each in listed for skill in each.skills}):
        scores[f"skill {skill}"] = _score(right[each.pid] for each in listed if skill in each.skills)
    return _present(scores)


def own_scores(examples: Iterable[Example], predictions: Mapping[str, str]) -> dict[str, Score]:
    """Scores over all of a user's own examples and by topic. An example without a prediction is wrong."""
    listed = list(examples)
    right = {each.pid: each.pid in predictions and is_right(predictions[each.pid], each) for each in listed}
    scores = {"all": _score(right.values())}
    for topic in sorted({each.topic for each in listed if each.topic}):
        scores[f"topic {topic}"] = _score(right[each.pid] for each in listed if each.topic == topic)
    return _present(scores)


def folder_scores(folder: ExampleFolder, split: str, predictions: Mapping[str, str]) -> dict[str, Score]:
    """The scores that belong to the folder's layout."""
    if isinstance(folder, ScienceQaFolder):
        return scienceqa_scores(read_problems(folder, split), predictions)
    scores_of = iconqa_scores if isinstance(folder, IconQaFolder) else own_scores
    return scores_of(folder.read(split), predictions)


def _chose(problem: Problem, prediction: str) -> bool:
    letter = letter_of(prediction)
    return letter is not None and LETTERS[: len(problem.choices)].find(letter) == problem.answer


def _score(matches: Iterable[bool]) -> Score:
    listed = list(matches)
    return Score(correct=sum(listed), count=len(listed))


def _present(scores: Mapping[str, Score]) -> dict[str, Score]:
    return {name: score for name, score in scores.items() if score.count}
