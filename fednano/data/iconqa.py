"""Reads IconQA (Lu et al. 2021) as its authors publish it: problems.json, pid_splits.json, pid2skills.json, images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fednano.data.example import Example
from fednano.data.json_file import (
    OFFICIAL_SPLITS,
    ProblemSplit,
    check_pid,
    check_splits,
    first_fault,
    read_object,
    to_json,
    wrong,
)
from fednano.errors import ExamplesInvalid
from fednano.prompt import LETTERS

FILL_IN_BLANK, CHOOSE_TXT, CHOOSE_IMG = TASKS = ("fill_in_blank", "choose_txt", "choose_img")
TASK_SPLITS = tuple(f"{task}_{split}" for task in TASKS for split in OFFICIAL_SPLITS)
PROBLEMS_FILE, SPLITS_FILE, SKILLS_FILE = "problems.json", "pid_splits.json", "pid2skills.json"


class Problem(BaseModel):
    """A record of problems.json. ``answer`` is an index into ``choices`` in the two tasks that have choices."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    question: str
    answer: int | str
    ques_type: str
    split: ProblemSplit
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

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have problems, by name."""
        found = (re.fullmatch(f"({'|'.join(TASKS)})_(.+)", name) for name, pids in self.pid_splits.items() if pids)
        return tuple(sorted({match.group(2) for match in found if match}))

    def read(self, split: str) -> list[Example]:
        """All tasks of the split, one after the other. Whether the images are there is not looked at."""
        return read_iconqa(self, split)

    def subset_files(self, pids_of_split: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
        pids = [pid for each in pids_of_split.values() for pid in each]
        lists = {
            f"{task}_{split}": [pid for pid in each if self.problems[pid]["ques_type"] == task]
            for split, each in pids_of_split.items()
            for task in TASKS
        }
        return {
            PROBLEMS_FILE: to_json({pid: self.problems[pid] for pid in pids}),
            SPLITS_FILE: to_json({name: each for name, each in lists.items() if each}),
            SKILLS_FILE: to_json({pid: self.skills[pid] for pid in pids}),
        }


def open_iconqa(folder: Path) -> IconQaFolder:
    opened = IconQaFolder(
        path=folder,
        problems=read_object(folder / PROBLEMS_FILE),
        pid_splits=read_object(folder / SPLITS_FILE),
        skills=read_object(folder / SKILLS_FILE),
    )
    check_splits(folder / SPLITS_FILE, opened.pid_splits, TASK_SPLITS)
    return opened


def read_iconqa(opened: IconQaFolder, split: str, tasks: Sequence[str] | None = None) -> list[Example]:
    """The examples of a split (train, val, test, minitrain ...), in the order of pid_splits.json, task after task.

    All tasks the split has, unless ``tasks`` selects some. The answer of a choose_img problem is the letter of its
    picture, for it has no text. Hints and units are not part of the question, as with the authors.
    """
    return [
        _example(opened, pid, problem)
        for task in (tasks if tasks is not None else _tasks_of(opened, split))
        for pid, problem in read_problems(opened, split, task).items()
    ]


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


def _problem(opened: IconQaFolder, pid: str, task: str) -> Problem:
    path = opened.path / PROBLEMS_FILE
    if pid not in opened.problems:
        raise wrong(path, pid, "the whole record", f"is missing, though {SPLITS_FILE} names it")
    check_pid(path, pid)
    try:
        problem = Problem.model_validate(opened.problems[pid])
    except ValidationError as error:
        raise wrong(path, pid, *first_fault(error)) from error
    if problem.ques_type != task:
        raise wrong(path, pid, "ques_type", f"is {problem.ques_type}, though {SPLITS_FILE} says {task}")
    if task == FILL_IN_BLANK:
        if not isinstance(problem.answer, str):
            raise wrong(path, pid, "answer", "must be a text where there are no choices")
    elif not isinstance(problem.answer, int) or not 0 <= problem.answer < len(problem.choices):
        raise wrong(path, pid, "answer", f"must be an index into the {len(problem.choices)} choices")
    return problem


def _example(opened: IconQaFolder, pid: str, problem: Problem) -> Example:
    skills = opened.skills.get(pid)
    if not isinstance(skills, list) or not skills or not all(isinstance(skill, str) for skill in skills):
        raise wrong(opened.path / SKILLS_FILE, pid, "skills", "must be a list of names")
    pictured = problem.ques_type == CHOOSE_IMG
    folder = opened.path / "iconqa" / problem.split / problem.ques_type / pid
    names = ["image.png", *(problem.choices if pictured else [])]
    return Example(
        pid=pid,
        images=tuple(folder / _plain(opened, pid, name) for name in names),
        question=problem.question,
        choices=("",) * len(problem.choices) if pictured else tuple(problem.choices),
        answer=_answer(problem),
        asks_letter=pictured,
        task=problem.ques_type,
        topic=skills[0],
        skills=tuple(skills),
    )


def _answer(problem: Problem) -> str:
    if not isinstance(problem.answer, int):
        return problem.answer
    return LETTERS[problem.answer] if problem.ques_type == CHOOSE_IMG else problem.choices[problem.answer]


def _plain(opened: IconQaFolder, pid: str, name: str) -> str:
    """The name of a file in the problem's own folder: none that leads out of it."""
    if Path(name).name != name:
        raise wrong(opened.path / PROBLEMS_FILE, pid, "choices", "must be names of files in the problem's folder")
    return name
