"""docs/troubleshooting.md has a row for every error there is, with its gRPC code and whether it is tried again."""

import re
from pathlib import Path

from fednano.errors import LocalError, wire_error_classes
from fednano.rpc.status import reason_name

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"


def test_every_reason_has_a_row_with_its_code_and_whether_it_is_retried() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| (yes|no) \| [^|]+ \| [^|]+ \|$", DOCUMENT.read_text(), re.M)
    known = [(reason_name(error), error.code, "yes" if error.retryable else "no") for error in wire_error_classes()]
    assert rows == known


def test_every_local_error_has_a_row() -> None:
    rows = re.findall(r"^\| `([A-Z][a-z]\w+)` \|", DOCUMENT.read_text(), re.M)
    assert sorted(rows) == sorted(error.__name__ for error in LocalError.__subclasses__())
