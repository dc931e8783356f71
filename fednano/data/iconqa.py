"""Reads IconQA (Lu et al. 2021) as its authors publish it: problems.json, pid_splits.json, pid2skills.json, images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fednano.data.example import Example
from fednano.errors import ExamplesInvalid

FILL_IN_BLANK, CHOOSE_TXT, CHOOSE_IMG = TASKS = ("fill_in_blank", "choose_txt", "choose_img")
PROBLEMS_FILE, SPLITS_FILE, SKILLS_FILE = "problems.json", "pid_splits.json", "pid2skills.json"


class Problem(BaseModel):
    """A record of problems.json. ``answer`` is an index into ``choices`` in the two tasks that have choices."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    question: str
    answer: int | str
    ques_type: str
    split: str
    choices: list[str] = []
    hint: str | None = None
    unit: str | None = None


@dataclass(frozen=True, kw_only=True)
class IconQaFolder:
    """The three files, read once. The images stay on disk."""

    path: Path
    problems: Mapping[str, Any]
    pid_splits: Mapping[str, Any]
    skills: Mapping[str, Any]


def load_iconqa(folder: Path, split: str, tasks: Sequence[str] | None = None) -> list[Example]:
    """The examples of a split (train, val, test, minitrain ...), in the order of pid_splits.json, task after task.

    ``folder`` is the one with problems.json in it (``iconqa_data``). All tasks the split has, unless ``tasks`` selects
    some; problems whose choices are images have no text to answer with and are refused. Hints and units are not
    part of the question.
    """
    opened = open_iconqa(folder)
    examples = []
    for task in tasks if tasks is not None else _tasks_of(opened, split):
        problems = read_problems(opened, split, task)
        if task == CHOOSE_IMG and problems:
            message = (
                f"{folder / SPLITS_FILE}: {len(problems)} problems of {CHOOSE_IMG}_{split} have images as choices,"
                f" which no model here can answer: select tasks=({FILL_IN_BLANK!r}, {CHOOSE_TXT!r})"
            )
            raise ExamplesInvalid(message, file=str(folder / SPLITS_FILE), task=task)
        examples += [_example(opened, pid, problem) for pid, problem in problems.items()]
    return examples


def open_iconqa(folder: Path) -> IconQaFolder:
    return IconQaFolder(
        path=folder,
        problems=_read_object(folder / PROBLEMS_FILE),
        pid_splits=_read_object(folder / SPLITS_FILE),
        skills=_read_object(folder / SKILLS_FILE),
    )


def read_problems(opened: IconQaFolder, split: str, task: str) -> dict[str, Problem]:
    """The checked records of one task and split by pid, in the order of pid_splits.json."""
    if task not in TASKS:
        raise ExamplesInvalid(f"{task} is no IconQA task: choose from {', '.join(TASKS)}", task=task)
    pids = opened.pid_splits.get(f"{task}_{split}")
    if not isinstance(pids, list):
        path = opened.path / SPLITS_FILE
        message = f"{path} has no list {task}_{split}: it has {', '.join(sorted(opened.pid_splits)) or 'nothing'}"
        raise ExamplesInvalid(message, file=str(path), split=split, task=task)
    return {str(pid): _problem(opened, str(pid), task) for pid in pids}


def _tasks_of(opened: IconQaFolder, split: str) -> list[str]:
    """The tasks that the split has problems of; all where it has none, so that reading says what is missing."""
    return [task for task in TASKS if opened.pid_splits.get(f"{task}_{split}")] or list(TASKS)


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read as JSON ({error}): give the folder that has {PROBLEMS_FILE} in it"
        raise ExamplesInvalid(message, file=str(path)) from error
    if not isinstance(value, dict):
        raise ExamplesInvalid(f"{path} holds no object with pids as keys", file=str(path))
    return value


def _problem(opened: IconQaFolder, pid: str, task: str) -> Problem:
    path = opened.path / PROBLEMS_FILE
    if pid not in opened.problems:
        raise _wrong(path, pid, "the whole record", f"is missing, though {SPLITS_FILE} names it")
    try:
        problem = Problem.model_validate(opened.problems[pid])
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise _wrong(path, pid, str(first["loc"][0]) if first["loc"] else "the whole record", first["msg"]) from error
    if problem.ques_type != task:
        raise _wrong(path, pid, "ques_type", f"is {problem.ques_type}, though {SPLITS_FILE} says {task}")
    if task == FILL_IN_BLANK:
        if not isinstance(problem.answer, str):
            raise _wrong(path, pid, "answer", "must be a text where there are no choices")
    elif not isinstance(problem.answer, int) or not 0 <= problem.answer < len(problem.choices):
        raise _wrong(path, pid, "answer", f"must be an index into the {len(problem.choices)} choices")
    return problem


def _example(opened: IconQaFolder, pid: str, problem: Problem) -> Example:
    image = opened.path / "iconqa" / problem.split / problem.ques_type / pid / "image.png"
    if not image.is_file():
        raise _wrong(opened.path / PROBLEMS_FILE, pid, "image", f"is missing: {image} is no file")
    skills = opened.skills.get(pid)
    if not isinstance(skills, list) or not all(isinstance(skill, str) for skill in skills):
        raise _wrong(opened.path / SKILLS_FILE, pid, "skills", "must be a list of names")
    answer = problem.choices[problem.answer] if isinstance(problem.answer, int) else problem.answer
    return Example(
        pid=pid,
        image=image,
        question=problem.question,
        choices=tuple(problem.choices),
        answer=answer,
        skills=tuple(skills),
    )


def _wrong(path: Path, pid: str, field: str, fault: str) -> ExamplesInvalid:
    return ExamplesInvalid(f"{path}: problem {pid}: {field} {fault}", file=str(path), pid=pid, field=field)
