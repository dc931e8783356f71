"""Pages of a list by the key of the last thing shown: a list that grows meanwhile skips and repeats nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fednano.errors import FieldInvalid
from fednano.names import check_id

ItemT = TypeVar("ItemT")
DEFAULT_SIZE = 20
MAX_SIZE = 100


@dataclass(frozen=True, kw_only=True)
class Page:
    """``size`` things, those after the one with the key ``token``, which is empty for the first page."""

    token: str
    size: int

    @property
    def after_id(self) -> str:
        """The token as the last part of a run's or a client's name; raises FieldInvalid."""
        return check_id(self.token, "page_token") if self.token else ""

    def after_number(self, first: int) -> int:
        """The token as a number, or one less than ``first`` for the first page; raises FieldInvalid."""
        if not self.token:
            return first - 1
        if not (self.token.isascii() and self.token.isdigit() and len(self.token) < 19):
            raise FieldInvalid("page_token must be next_page_token of an earlier answer", field="page_token")
        return int(self.token)

    def cut(self, found: Sequence[ItemT], key: Callable[[ItemT], object]) -> tuple[list[ItemT], str]:
        """The page's things and the next page's token, from up to ``size`` + 1 things that were found."""
        shown = list(found[: self.size])
        return shown, str(key(shown[-1])) if len(found) > self.size else ""


def page(size: int, token: str, *, default: int = DEFAULT_SIZE, most: int = MAX_SIZE) -> Page:
    """The page that a request asks for; raises FieldInvalid for a size below 0."""
    if size < 0:
        raise FieldInvalid("page_size must not be negative", field="page_size")
    return Page(token=token, size=min(size or default, most))
