"""Reading the JSON objects that data sets are published as."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fednano.errors import ExamplesInvalid

# Where a problem's pictures lie, and the splits that are made of these.
ProblemSplit = Literal["train", "val", "test"]
OFFICIAL_SPLITS = ("train", "val", "test", "trainval", "minitrain", "minival", "minitest")


def read_object(path: Path) -> Mapping[str, Any]:
    """Raises ExamplesInvalid, which names the file, where it is not an object with pids or splits as keys."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ExamplesInvalid(f"{path} cannot be read as JSON ({error})", file=str(path)) from error
    if not isinstance(value, dict):
        raise ExamplesInvalid(f"{path} holds no object with names as keys", file=str(path))
    return value


def check_splits(path: Path, found: Iterable[str], known: Sequence[str]) -> None:
    """Raises ExamplesInvalid for a list of problems by another name: nobody would ever read it."""
    for name in found:
        if name not in known:
            message = f"{path}: {name} is no split: it must be one of {', '.join(known)}"
            raise ExamplesInvalid(message, file=str(path), split=name)


def check_pid(path: Path, pid: str) -> None:
    """Raises ExamplesInvalid for a pid that names no folder of its own."""
    if not pid or Path(pid).name != pid:
        raise wrong(path, pid, "pid", "must be the name of a folder")


def wrong(path: Path, pid: str, field: str, fault: str) -> ExamplesInvalid:
    """A problem's field that is not as it should be."""
    return ExamplesInvalid(f"{path}: problem {pid}: {field} {fault}", file=str(path), pid=pid, field=field)


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The field that is wrong, and what is wrong with it; never its content."""
    first = error.errors(include_input=False)[0]
    return (str(first["loc"][0]) if first["loc"] else "the whole record", first["msg"])


def to_json(value: object) -> bytes:
    """As files of problems are written here: the same value gives the same bytes."""
    return (json.dumps(value, indent=1) + "\n").encode()
