"""`fednano client doctor` with a real server and a real aggregator, where all is well and where something is not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from secure_federation import SecureFederation, secure_federation

from fednano.data.icon_federation import write_icon_federation
from fednano.model.parts import resolve_model
from fednano.security.authority import create_authority
from fednano.security.certificates import Subject
from fednano.security.identity import Role
from services.client.checks import Row
from services.client.doctor import examine
from services.client.peer_checks import clock_row
from services.client.settings import ClientSettings

CHECKS = {"device", "model", "memory", "disk", "examples", "certificate", "server", "aggregator"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    torch.set_num_threads(1)
    with secure_federation(tmp_path_factory.mktemp("federation")) as made:
        made.holder(Role.CLIENT, "client-1")
        yield made


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder,) = write_icon_federation(
        tmp_path_factory.mktemp("icons"), client_count=1, alpha=1.0, seed=0, train_count=6, val_count=1, test_count=3
    )
    return folder


def settings(
    federation: SecureFederation, examples: Path, holder: Path | None = None, **changes: object
) -> ClientSettings:
    holder = holder or federation.holder(Role.CLIENT, "client-1")
    values: dict[str, object] = {
        "client_id": "client-1",
        "examples": examples,
        "server": federation.addresses["server"],
        "aggregator": federation.addresses["aggregator"],
        "tls_ca": holder / "ca.crt",
        "tls_cert": holder / "tls.crt",
        "tls_key": holder / "tls.key",
        "feature_cache_bytes": 1 << 20,
        "state": federation.folder / "client-state",
    }
    return ClientSettings.model_validate(values | changes)


def rows(found: ClientSettings) -> dict[str, Row]:
    """By the check's name, addresses left out."""
    addresses = {found.server: "", found.aggregator: ""}
    named = {}
    for row in examine(found):
        name = row.check
        for address in addresses:
            name = name.replace(f" {address}", "")
        named[name] = row
    return named


def failed(found: dict[str, Row]) -> set[str]:
    return {name for name, row in found.items() if row.state == "fail"}


def test_where_all_is_well_every_check_says_so_and_the_command_ends_with_0(
    federation: SecureFederation, examples: Path, tmp_path: Path
) -> None:
    well = settings(federation, examples)
    env = tmp_path / "client.env"
    names = ("client_id", "examples", "server", "aggregator", "tls_ca", "tls_cert", "tls_key", "state")
    env.write_text("# settings\n" + "".join(f"FEDNANO_{name.upper()}={getattr(well, name)}\n" for name in names))
    command = [sys.executable, "-m", "fednano.cli.main", "client", "doctor", "--json", "--env", str(env)]
    ended = subprocess.run(
        [*command, "--feature-cache-bytes", "1000000"], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)
    assert found["ok"]
    assert {row["check"].split(" ")[0].rstrip(",") for row in found["checks"]} == CHECKS
    by_name = {row["check"]: row for row in found["checks"]}
    assert by_name["examples"]["found"].endswith("train 6, val 1, test 3; the model can spell 9 of 9 answers")
    assert "client/client-1" in by_name["certificate"]["found"]
    assert "edge half's" in by_name[f"server {well.server}, model"]["found"]
    assert by_name[f"aggregator {well.aggregator}, clock"]["state"] == "ok"


def test_settings_that_are_missing_are_named_and_the_command_ends_with_2() -> None:
    command = [sys.executable, "-m", "fednano.cli.main", "client", "doctor", "--client-id", "client-1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "--examples: Field required" in ended.stdout


def test_what_fails_is_marked_and_the_command_ends_with_1(examples: Path) -> None:
    absent = "cuda" if torch.backends.mps.is_available() or not torch.cuda.is_available() else "mps"
    flags = {"--client-id": "client-1", "--server": "127.0.0.1:1", "--aggregator": "127.0.0.1:2", "--device": absent}
    words = [word for flag in flags.items() for word in flag]
    command = [sys.executable, "-m", "fednano.cli.main", "client", "doctor", "--insecure", "--examples", str(examples)]
    ended = subprocess.run([*command, *words], capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    lines = [line for line in ended.stdout.splitlines() if not line.strip().startswith("->")]
    marks = {line[6:].split("  ")[0]: line[:4].strip() for line in lines}
    assert marks == {
        "device": "FAIL",
        "model": "ok",
        "memory": marks["memory"],
        "disk": "WARN",
        "examples": "ok",
        "certificate": "WARN",
        "server 127.0.0.1:1": "FAIL",
        "aggregator 127.0.0.1:2": "FAIL",
    }
    assert f"torch finds no {absent} device on this machine" in ended.stdout


def test_a_disk_without_room_fails_and_memory_that_does_not_suffice_is_a_warning(
    federation: SecureFederation, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.client.local_checks.LEAST_FREE_BYTES", 1 << 60)
    found = rows(settings(federation, examples, feature_memory_bytes=1 << 50))
    assert failed(found) == {"disk, state", "disk, features"}
    assert "make room" in found["disk, state"].next
    assert found["memory"].state == "warn"


def test_a_peer_that_is_not_there_fails_alone(federation: SecureFederation, examples: Path) -> None:
    found = rows(settings(federation, examples, server="127.0.0.1:1"))
    assert failed(found) == {"server"}
    assert "is it started, is the address right?" in found["server"].found


def test_plaintext_to_peers_with_tls_is_told_as_that(federation: SecureFederation, examples: Path) -> None:
    found = rows(settings(federation, examples, insecure=True, tls_ca=None, tls_cert=None, tls_key=None))
    assert failed(found) == {"server", "aggregator"}
    assert "the peer speaks TLS" in found["aggregator"].found
    assert found["certificate"].state == "warn"


def test_a_certificate_of_another_client_fails_before_the_aggregator_says_so(
    federation: SecureFederation, examples: Path
) -> None:
    found = rows(settings(federation, examples, federation.holder(Role.CLIENT, "client-2")))
    assert failed(found) == {"certificate"}
    assert "client/client-2" in found["certificate"].found
    assert "client/client-1" in found["certificate"].found


def test_a_revoked_certificate_fails(federation: SecureFederation, examples: Path, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    shutil.copytree(federation.authority.folder, folder)
    authority, _ = create_authority(folder)
    holder = authority.issue(Subject(role=Role.CLIENT, id="client-3"))
    authority.revoke(Role.CLIENT, "client-3")
    found = rows(settings(federation, examples, holder, client_id="client-3", tls_crl=folder / "ca.crl"))
    assert failed(found) == {"certificate"}
    assert "revoked" in found["certificate"].found
    assert "enroll" in found["certificate"].next


def test_a_certificate_of_another_ca_fails_here_and_there(
    federation: SecureFederation, examples: Path, tmp_path: Path
) -> None:
    stranger, _ = create_authority(tmp_path / "other")
    holder = stranger.issue(Subject(role=Role.CLIENT, id="client-1"))
    found = rows(settings(federation, examples, holder, tls_ca=federation.authority.folder / "ca.crt"))
    assert failed(found) == {"certificate", "server", "aggregator"}
    assert "not issued by" in found["certificate"].found


def test_a_certificate_that_ends_soon_is_a_warning(
    federation: SecureFederation, examples: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "certs"
    shutil.copytree(federation.authority.folder, folder)
    authority, _ = create_authority(folder)
    holder = authority.issue(Subject(role=Role.CLIENT, id="client-4"), days=3)
    found = rows(settings(federation, examples, holder, client_id="client-4"))
    assert failed(found) == set()
    assert found["certificate"].state == "warn"
    assert "3 days left" in found["certificate"].found


def test_halves_that_do_not_belong_together_fail_and_both_digests_are_named(
    federation: SecureFederation, examples: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve_model("nano") / "edge", model / "edge")
    manifest = json.loads((model / "edge" / "manifest.json").read_text())
    ours = manifest["digest"]
    manifest["digest"] = "0" * 64
    (model / "edge" / "manifest.json").write_text(json.dumps(manifest))
    found = rows(settings(federation, examples, model=str(model)))
    assert failed(found) == {"server, model"}
    assert ours in found["server, model"].found
    assert "0" * 64 in found["server, model"].found


def test_an_edge_half_that_is_damaged_fails_and_the_rest_is_still_looked_at(
    federation: SecureFederation, examples: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve_model("nano") / "edge", model / "edge")
    (model / "edge" / "model.safetensors").write_bytes(b"\0" * 100)
    found = rows(settings(federation, examples, model=str(model)))
    assert failed(found) == {"model"}
    assert "model.safetensors" in found["model"].found
    assert found["examples"].state == found["server, model"].state == "warn"


def test_a_split_without_examples_and_a_folder_without_any_fail(
    federation: SecureFederation, examples: Path, tmp_path: Path
) -> None:
    assert failed(rows(settings(federation, tmp_path / "nowhere"))) == {"examples"}
    copy = tmp_path / "copy"
    shutil.copytree(examples, copy)
    splits = json.loads((copy / "pid_splits.json").read_text())
    (copy / "pid_splits.json").write_text(json.dumps(splits | {"fill_in_blank_test": []}))
    found = rows(settings(federation, copy))
    assert failed(found) == {"examples"}
    assert "no example in test" in found["examples"].found


def test_a_state_folder_that_cannot_be_fails(federation: SecureFederation, examples: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = rows(settings(federation, examples, state=tmp_path / "file" / "state"))
    assert failed(found) == {"disk, state", "disk, features"}


@pytest.mark.parametrize(("ahead_s", "state"), [(0.0, "ok"), (20.0, "ok"), (-3600.0, "fail"), (3600.0, "fail")])
def test_a_clock_that_is_wrong_fails(ahead_s: float, state: str) -> None:
    here_s = (datetime.now(UTC) + timedelta(seconds=ahead_s)).timestamp()
    told = {"fednano-clock-ms": str(int(datetime.now(UTC).timestamp() * 1000))}
    assert clock_row("clock", told, here_s, here_s + 0.01).state == state
    assert clock_row("clock", {}, here_s, here_s).state == "warn"
