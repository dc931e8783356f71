"""Reads ScienceQA (Lu et al. 2022) as its authors publish it: problems.json, pid_splits.json, images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

PROBLEMS_FILE, SPLITS_FILE = "problems.json", "pid_splits.json"
Subject = Literal["natural science", "social science", "language science"]


class Problem(BaseModel):
    """A record of problems.json; ``answer`` is an index into ``choices``, ``image`` a file's name."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    question: str
    choices: list[str]
    answer: int
    hint: str
    image: str | None
    grade: str
    subject: Subject
    topic: str
    split: ProblemSplit

    @property
    def grade_number(self) -> int:
        return int(self.grade.removeprefix("grade"))


@dataclass(frozen=True, kw_only=True)
class ScienceQaFolder:
    """The two files, read once. The images stay on disk."""

    path: Path
    problems: Mapping[str, Any]
    pid_splits: Mapping[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have problems, by name."""
        return tuple(sorted(split for split, pids in self.pid_splits.items() if pids))

    def read(self, split: str) -> list[Example]:
        """In the order of pid_splits.json. Whether the images are there is not looked at."""
        return [_example(self.path, pid, problem) for pid, problem in read_problems(self, split).items()]

    def subset_files(self, pids_of_split: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
        pids = [pid for each in pids_of_split.values() for pid in each]
        return {
            PROBLEMS_FILE: to_json({pid: self.problems[pid] for pid in pids}),
            SPLITS_FILE: to_json({split: list(each) for split, each in pids_of_split.items()}),
        }


def open_scienceqa(folder: Path) -> ScienceQaFolder:
    opened = ScienceQaFolder(
        path=folder, problems=read_object(folder / PROBLEMS_FILE), pid_splits=read_object(folder / SPLITS_FILE)
    )
    check_splits(folder / SPLITS_FILE, opened.pid_splits, OFFICIAL_SPLITS)
    return opened


def read_problems(opened: ScienceQaFolder, split: str) -> dict[str, Problem]:
    """The checked records of a split (train, val, test, minival ...) by pid, in the order of pid_splits.json."""
    pids = opened.pid_splits.get(split)
    if not isinstance(pids, list):
        path = opened.path / SPLITS_FILE
        message = f"{path} has no split {split}: it has {', '.join(sorted(opened.pid_splits)) or 'nothing'}"
        raise ExamplesInvalid(message, file=str(path), split=split)
    return {str(pid): _problem(opened, str(pid)) for pid in pids}


def _problem(opened: ScienceQaFolder, pid: str) -> Problem:
    path = opened.path / PROBLEMS_FILE
    if pid not in opened.problems:
        raise wrong(path, pid, "the whole record", f"is missing, though {SPLITS_FILE} names it")
    check_pid(path, pid)
    try:
        problem = Problem.model_validate(opened.problems[pid])
    except ValidationError as error:
        raise wrong(path, pid, *first_fault(error)) from error
    if not 0 <= problem.answer < len(problem.choices):
        raise wrong(path, pid, "answer", f"must be an index into the {len(problem.choices)} choices")
    if problem.image is not None and Path(problem.image).name != problem.image:
        raise wrong(path, pid, "image", "must be the name of a file in the problem's folder")
    if not re.fullmatch(r"grade([1-9]|1[0-2])", problem.grade):
        raise wrong(path, pid, "grade", "must be grade1 to grade12")
    return problem


def _example(folder: Path, pid: str, problem: Problem) -> Example:
    image = folder / "images" / problem.split / pid / problem.image if problem.image else None
    return Example(
        pid=pid,
        images=(image,) if image else (),
        question=problem.question,
        choices=tuple(problem.choices),
        answer=LETTERS[problem.answer],
        asks_letter=True,
        hint=problem.hint,
        task="scienceqa",
        topic=problem.topic,
        skills=(problem.topic,),
    )
