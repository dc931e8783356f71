"""Reading the JSON objects that data sets are published as."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fednano.errors import ExamplesInvalid


def read_object(path: Path) -> Mapping[str, Any]:
    """Raises ExamplesInvalid, which names the file, where it is not an object with pids or splits as keys."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read as JSON ({error}): give the folder that has {path.name} in it"
        raise ExamplesInvalid(message, file=str(path)) from error
    if not isinstance(value, dict):
        raise ExamplesInvalid(f"{path} holds no object with names as keys", file=str(path))
    return value


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
