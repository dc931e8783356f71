"""A certificate that ends soon is told of while it is in use, not only when it is read."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fednano.config import Security
from fednano.security import pem_files
from fednano.security.authority import create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role
from fednano.security.pem_files import PemFiles


def opened(folder: Path, days: float) -> PemFiles:
    authority, _ = create_authority(folder / "ca")
    holder = authority.issue(Subject(role=Role.SERVER, id="s1"), days=days)
    return PemFiles(Security(tls_ca=holder / "ca.crt", tls_cert=holder / "tls.crt", tls_key=holder / "tls.key"))


def told(files: PemFiles) -> int:
    with capture_logs() as logs:
        files.refresh()
    return [entry["event"] for entry in logs].count("certificate_ends_soon")


def test_it_is_told_again_once_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = opened(tmp_path, days=5)
    assert told(files) == 0
    now_s = pem_files.time.monotonic()
    monkeypatch.setattr(pem_files.time, "monotonic", lambda: now_s + 86_401)
    assert [told(files), told(files)] == [1, 0]


def test_nothing_is_told_of_one_that_is_good_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = opened(tmp_path, days=60)
    monkeypatch.setattr(pem_files, "TELL_AGAIN_S", 0.0)
    assert told(files) == 0
