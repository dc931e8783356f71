"""Resource names as the contract writes them: runs/{run}, runs/{run}/rounds/{round}, runs/{run}/clients/{client}."""

import re
from dataclasses import dataclass
from typing import Self

from fednano.errors import FieldInvalid

# A part of a name: safe in a path, in a log and in a shell.
ID = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"


@dataclass(frozen=True, kw_only=True, order=True)
class RunName:
    """runs/{run}"""

    run: str

    @classmethod
    def parse(cls, text: str, field: str = "name") -> Self:
        """Raises FieldInvalid, naming ``field``, where the text has another form."""
        return cls(run=_match(rf"runs/({ID})", text, field, "runs/{run}").group(1))

    def __str__(self) -> str:
        return f"runs/{self.run}"


@dataclass(frozen=True, kw_only=True, order=True)
class RoundName:
    """runs/{run}/rounds/{round}; round 0 only evaluates the initial adapter."""

    run: str
    number: int

    @classmethod
    def parse(cls, text: str, field: str = "name") -> Self:
        """Raises FieldInvalid, naming ``field``, where the text has another form."""
        match = _match(rf"runs/({ID})/rounds/(0|[1-9][0-9]{{0,8}})", text, field, "runs/{run}/rounds/{round}")
        return cls(run=match.group(1), number=int(match.group(2)))

    @property
    def parent(self) -> RunName:
        return RunName(run=self.run)

    def __str__(self) -> str:
        return f"runs/{self.run}/rounds/{self.number}"


@dataclass(frozen=True, kw_only=True, order=True)
class ClientName:
    """runs/{run}/clients/{client}"""

    run: str
    client: str

    @classmethod
    def parse(cls, text: str, field: str = "name") -> Self:
        """Raises FieldInvalid, naming ``field``, where the text has another form."""
        match = _match(rf"runs/({ID})/clients/({ID})", text, field, "runs/{run}/clients/{client}")
        return cls(run=match.group(1), client=match.group(2))

    @property
    def parent(self) -> RunName:
        return RunName(run=self.run)

    def __str__(self) -> str:
        return f"runs/{self.run}/clients/{self.client}"


def check_id(text: str, field: str) -> str:
    """The text itself where it can be a part of a name; otherwise FieldInvalid, naming ``field``."""
    return _match(
        rf"({ID})", text, field, "1-63 of a-z, 0-9, '.', '_', '-', starting and ending with a letter or digit"
    ).group(1)


def _match(pattern: str, text: str, field: str, form: str) -> re.Match[str]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise FieldInvalid(f"{field} is {text[:100]!r}, but must have the form {form}", field=field)
    return match
