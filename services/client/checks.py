"""A row of what the doctor finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Row:
    """``found`` is what there is, ``next`` what to do where that is not well."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    next: str = ""


def ok(check: str, found: str) -> Row:
    return Row(check=check, state="ok", found=found)


def warn(check: str, found: str, next_step: str) -> Row:
    return Row(check=check, state="warn", found=found, next=next_step)


def fail(check: str, found: str, next_step: str = "") -> Row:
    """Messages of ours say the next step themselves."""
    return Row(check=check, state="fail", found=found, next=next_step)
