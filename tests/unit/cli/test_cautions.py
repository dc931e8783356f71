"""What a command says beside its result: nothing where all is well."""

from pathlib import Path

import pytest

from fednano.cli.cautions import ending_cautions, plaintext_cautions
from fednano.security.authority import create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role


@pytest.mark.parametrize("address", ["127.0.0.1:7000", "localhost:7000", "[::1]:7000", "dns:///localhost:7000", ""])
def test_plaintext_on_this_machine_is_what_it_is_for(address: str) -> None:
    assert plaintext_cautions([address]) == []


def test_plaintext_to_another_machine_is_said_with_its_address() -> None:
    (words,) = plaintext_cautions(["127.0.0.1:7000", "llm.example.org:7001"])
    assert "on the way to llm.example.org:7001 is" in words


def test_a_certificate_that_ends_soon_is_said_and_how_to_renew_it(tmp_path: Path) -> None:
    assert ending_cautions(certificate(tmp_path, days=90)) == []
    (words,) = ending_cautions(certificate(tmp_path, days=3))
    assert "ends in 3.0 days: `fednano certs issue` renews it" in words
    assert ending_cautions(None) == []


def certificate(folder: Path, days: float) -> Path:
    authority, _ = create_authority(folder / "ca")
    return authority.issue(Subject(role=Role.OPERATOR, id="ada"), days=days) / "tls.crt"
