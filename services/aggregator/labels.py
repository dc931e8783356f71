"""Texts that others choose and everyone is shown: bounded, for each event and each list repeats them."""

from collections.abc import Mapping

from fednano.errors import FieldInvalid

MAX_LENGTH = 200
MAX_COUNTS = 20


def check_label(text: str, field: str) -> None:
    """Raises FieldInvalid, naming ``field``."""
    if len(text) > MAX_LENGTH:
        raise FieldInvalid(f"{field} has {len(text)} characters, but may have {MAX_LENGTH}", field=field)


def check_counts(counts: Mapping[str, int], field: str) -> None:
    """Raises FieldInvalid, naming ``field``, for too many counts or a key that is too long."""
    if len(counts) > MAX_COUNTS:
        raise FieldInvalid(f"{field} has {len(counts)} entries, but may have {MAX_COUNTS}", field=field)
    for key in counts:
        check_label(key, field)
