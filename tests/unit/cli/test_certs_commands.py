"""`fednano certs`: what it prints, how it ends, and that the openssl command agrees."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fednano.cli.app import app


def certs(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["certs", *map(str, words)])


def as_json(*words: str | Path) -> dict[str, Any]:
    done = certs(*words, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert as_json("init", tmp_path / "ca")["created"] is True
    return tmp_path / "ca"


def test_init_again_says_that_it_did_nothing(folder: Path) -> None:
    before = (folder / "ca.crt").read_bytes()
    assert "was there already" in certs("init", folder).stdout
    assert (folder / "ca.crt").read_bytes() == before


def test_a_certificate_is_issued_shown_and_revoked(folder: Path) -> None:
    made = as_json("issue", folder, "server", "s1", "--host", "server.example.org", "--days", "30")
    assert (made["role"], made["id"], made["state"], made["chainOk"]) == ("server", "s1", "valid", True)
    assert "server.example.org" in made["hosts"]
    assert as_json("revoke", folder, "server", "s1")["revoked"] == [made["serial"]]
    shown = as_json("show", folder / "server-s1")
    assert (shown["state"], shown["revoked"], shown["serial"]) == ("revoked", True, made["serial"])
    authority, server = as_json("show", folder)["certificates"]
    assert (authority["isAuthority"], server) == (True, shown)


def test_a_table_lists_all_that_was_issued(folder: Path) -> None:
    certs("issue", folder, "client", "site-a")
    certs("issue", folder, "operator", "ada")
    lines = certs("show", folder).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["role", "id"],
        ["CA", "-"],
        ["client", "site-a"],
        ["operator", "ada"],
    ]


def test_renewing_by_the_clock_leaves_alone_what_is_good_and_what_is_revoked(folder: Path) -> None:
    renew = ("issue", folder, "client", "site-a", "--renew-within", "30")
    first = as_json(*renew)
    assert first["issued"] is True
    assert as_json(*renew)["serial"] == first["serial"]
    assert as_json(*renew, "--host", "edge.example.org")["issued"] is True
    assert as_json("issue", folder, "client", "site-a", "--days", "20")["issued"] is True
    second = as_json(*renew)
    assert second["issued"] is True
    certs("revoke", folder, "client", "site-a")
    left = as_json(*renew)
    assert (left["issued"], left["state"], left["serial"]) == (False, "revoked", second["serial"])
    assert as_json("issue", folder, "client", "site-a")["state"] == "valid"


def test_show_tells_a_certificate_of_another_authority(folder: Path, tmp_path: Path) -> None:
    certs("init", tmp_path / "other")
    certs("issue", folder, "client", "site-a")
    shutil.copy(tmp_path / "other" / "ca.crt", folder / "client-site-a" / "ca.crt")
    shown = as_json("show", folder / "client-site-a" / "tls.crt")
    assert (shown["chainOk"], shown["state"]) == (False, "unknown CA")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("issue", "DIR", "client", "Site A"), 2, "is no id"),
        (("issue", "DIR", "root", "a"), 2, "root"),
        (("issue", "DIR", "server", "s", "--host", "a b"), 2, "neither a name nor an address"),
        (("issue", "NONE", "client", "a"), 2, "fednano certs init"),
        (("revoke", "DIR", "client", "nobody"), 3, "never issued"),
        (("revoke", "DIR", "client", "nobody", "--serial", "xyz"), 2, "hexadecimal"),
        (("show", "NONE"), 2, "there is no certificate"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder: Path, words: tuple[str, ...], code: int, message: str) -> None:
    places = {"DIR": str(folder), "NONE": str(folder / "none")}
    done = certs(*(places.get(word, word) for word in words))
    assert done.exit_code == code
    assert message in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not here")
def test_openssl_accepts_what_is_good_and_refuses_what_is_revoked(folder: Path) -> None:
    certs("issue", folder, "server", "good")
    certs("issue", folder, "server", "bad")
    certs("revoke", folder, "server", "bad")
    verify = ("openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", "ca.crt", "-CRLfile", "ca.crl")
    for name, code, words in (("good", 0, "OK"), ("bad", 2, "certificate revoked")):
        command = (*verify, f"server-{name}/tls.crt")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == code, done.stderr
        assert words in done.stdout + done.stderr


def test_the_days_that_are_left_stand_beside_the_state_where_they_are_few(folder: Path) -> None:
    certs("issue", folder, "client", "site-a", "--days", "3")
    certs("issue", folder, "client", "site-b")
    assert "valid, 3.0 days left" in certs("show", folder / "client-site-a").stdout
    assert "valid, 3.0 days left" in certs("show", folder).stdout
    assert "days left" not in certs("show", folder / "client-site-b").stdout
    # A program reads when.
    assert as_json("show", folder / "client-site-a")["state"] == "valid"
