"""An operator and a real aggregator process over TLS: what works, and what each end says where it does not."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from aggregator_process import AggregatorProcess
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from typer.testing import CliRunner, Result

from fednano.cli.app import app
from fednano.security.authority import Authority, create_authority, read_certificate
from fednano.security.certificates import Subject, new_key
from fednano.security.files import certificate_pem, key_pem
from fednano.security.identity import Role

ADA = Subject(role=Role.OPERATOR, id="ada")
SERVICE = Subject(role=Role.AGGREGATOR, id="a1")
MODEL = ("--model-digest", "d" * 64, "--hidden-size", "8", "--rank", "2", "--rounds", "2")


def files(authority: Authority, subject: Subject) -> dict[str, Path]:
    folder = authority.folder / f"{subject.role}-{subject.id}"
    return {"--tls-ca": folder / "ca.crt", "--tls-cert": folder / "tls.crt", "--tls-key": folder / "tls.key"}


def flags(chosen: dict[str, Path]) -> list[str]:
    return [word for flag, path in chosen.items() for word in (flag, str(path))]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An aggregator on all addresses of this machine, for one CA; another CA; an aggregator without TLS."""

    authority: Authority
    other: Authority
    port: str
    plain_address: str
    log: Path

    def fednano(self, words: Sequence[str], chosen: dict[str, Path], host: str = "127.0.0.1") -> Result:
        return run((*words, "--aggregator", f"{host}:{self.port}", *flags(chosen)))

    @property
    def ada(self) -> dict[str, Path]:
        return files(self.authority, ADA)


def run(words: Sequence[str]) -> Result:
    return CliRunner().invoke(app, list(words), env={"FEDNANO_AGGREGATOR": "", "FEDNANO_INSECURE": ""})


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = (create_authority(folder / name)[0] for name in ("ca", "other"))
    for each in (authority, other):
        each.issue(ADA)
        each.issue(SERVICE)
    transport = [*flags(files(authority, SERVICE)), "--tls-crl", str(authority.folder / "ca.crl")]
    (folder / "tls").mkdir()
    (folder / "plain").mkdir()
    secure = AggregatorProcess(folder / "tls" / "state", transport=transport, listen="0.0.0.0:0")
    plain = AggregatorProcess(folder / "plain" / "state")
    address, plain_address = asyncio.run(secure.start()), asyncio.run(plain.start())
    yield Scene(
        authority=authority,
        other=other,
        port=address.rpartition(":")[2],
        plain_address=plain_address,
        log=folder / "tls" / "state.log",
    )
    for process in (secure, plain):
        process.kill(signal.SIGTERM)


def test_an_operator_creates_reads_and_ends_a_run_over_tls(scene: Scene) -> None:
    ada = scene.ada
    for words in (
        ("run", "create", "secure", *MODEL),
        ("run", "pause", "secure"),
        ("run", "resume", "secure"),
        ("run", "cancel", "secure"),
        ("run", "watch", "secure"),
        ("status",),
    ):
        done = scene.fednano(words, ada)
        # A run that was cancelled is watched to its end with exit code 1.
        assert done.exit_code == (1 if words[1:2] == ("watch",) else 0), done.output
    (listed,) = json.loads(scene.fednano(("run", "list", "--json"), ada).stdout)["runs"]
    assert (listed["name"], listed["state"]) == ("runs/secure", "STATE_CANCELLED")


def failing(scene: Scene, chosen: dict[str, Path], host: str = "127.0.0.1") -> Result:
    begin_s = time.monotonic()
    done = scene.fednano(("run", "list", "--timeout", "20"), chosen, host)
    # Nobody waits for what waiting does not heal.
    assert time.monotonic() - begin_s < 10
    assert done.exit_code != 0
    assert done.stderr.count("\n") == 1
    return done


def test_an_authority_that_did_not_issue_the_peers_certificate_is_named(scene: Scene) -> None:
    done = failing(scene, files(scene.other, ADA))
    names = [one.certificate.subject.rfc4514_string() for one in (scene.authority, scene.other)]
    assert done.exit_code == 4
    assert f"was issued by {names[0]}, and --tls-ca" in done.stderr
    assert f"holds {names[1]}: give both ends the ca.crt of one CA" in done.stderr


def test_a_certificate_that_the_peers_authority_did_not_issue_is_named(scene: Scene) -> None:
    done = failing(scene, files(scene.other, ADA) | {"--tls-ca": scene.ada["--tls-ca"]})
    assert done.exit_code == 4
    assert f"{scene.other.certificate.subject.rfc4514_string()} issued it" in done.stderr
    assert "have it issued by the CA that the peer trusts" in done.stderr


def test_a_host_that_the_certificate_is_not_for_is_named(scene: Scene) -> None:
    done = failing(scene, scene.ada, host="127.0.0.2")
    assert done.exit_code == 4
    assert "is for localhost, 127.0.0.1, ::1, and it was called as 127.0.0.2" in done.stderr
    assert "fednano certs issue ... --host 127.0.0.2" in done.stderr


def test_plaintext_to_a_service_that_speaks_tls_is_told(scene: Scene) -> None:
    done = run(("run", "list", "--timeout", "20", "--insecure", "--aggregator", f"127.0.0.1:{scene.port}"))
    assert done.exit_code == 4
    assert "the peer speaks TLS, and this end was told --insecure: give --tls-ca" in done.stderr


def test_tls_to_a_service_that_speaks_plaintext_is_told(scene: Scene) -> None:
    done = run(("run", "list", "--timeout", "20", "--aggregator", scene.plain_address, *flags(scene.ada)))
    assert done.exit_code == 4
    assert "the peer speaks plaintext, and this end wants TLS" in done.stderr


def test_status_says_why_a_service_cannot_be_reached(scene: Scene) -> None:
    done = scene.fednano(("status",), scene.ada, host="127.0.0.2")
    assert done.exit_code == 1
    assert "it was called as 127.0.0.2" in done.stdout


def test_a_revoked_operator_is_refused_at_once_and_both_ends_say_so(scene: Scene) -> None:
    eve = Subject(role=Role.OPERATOR, id="eve")
    scene.authority.issue(eve)
    assert scene.fednano(("run", "list"), files(scene.authority, eve)).exit_code == 0
    scene.authority.revoke(Role.OPERATOR, "eve")
    done = failing(scene, files(scene.authority, eve))
    assert done.exit_code == 1
    assert "operator/eve is revoked: ask who runs the federation's CA" in done.stderr
    refused = [json.loads(line) for line in scene.log.read_text().splitlines() if '"call_refused"' in line]
    assert refused[-1]["facts"]["fault"] == "revoked"
    assert "operator/eve" in refused[-1]["message"]


def test_a_service_whose_certificate_is_revoked_is_refused_by_who_has_the_list(scene: Scene, tmp_path: Path) -> None:
    # A list of the same authority that only the operator has.
    copy = tmp_path / "ca"
    subprocess.run(["cp", "-a", str(scene.authority.folder), str(copy)], check=True)
    create_authority(copy)[0].revoke(Role.AGGREGATOR, "a1")
    done = failing(scene, scene.ada | {"--tls-crl": copy / "ca.crl"})
    assert done.exit_code == 4
    assert "do not trust this peer until it has another" in done.stderr


WRONG_FILES = [
    ({"--tls-key": "client-site-a/tls.key"}, "is not the key of the certificate"),
    ({"--tls-crl": "ca.crt"}, "holds no revocation list"),
    ({"--tls-key": "nowhere"}, "--tls-key: cannot read"),
    ({"--tls-cert": "client-old/tls.crt", "--tls-key": "client-old/tls.key"}, "and this machine's clock says"),
]


def spoiled(scene: Scene, changed: dict[str, str]) -> dict[str, Path]:
    scene.authority.issue(Subject(role=Role.CLIENT, id="site-a"))
    scene.authority.issue(Subject(role=Role.CLIENT, id="old"), days=-0.001)
    return {flag: scene.authority.folder / path for flag, path in changed.items()}


@pytest.mark.parametrize(("changed", "words"), WRONG_FILES)
def test_what_is_wrong_with_the_own_files_is_told_before_any_call(
    scene: Scene, changed: dict[str, str], words: str
) -> None:
    done = scene.fednano(("run", "list"), scene.ada | spoiled(scene, changed))
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr


@pytest.mark.parametrize(("changed", "words"), WRONG_FILES[:2])
def test_a_service_with_wrong_files_does_not_start(
    scene: Scene, tmp_path: Path, changed: dict[str, str], words: str
) -> None:
    command = [sys.executable, "-m", "services.aggregator", "--state", str(tmp_path / "state")]
    chosen = flags(files(scene.authority, SERVICE) | spoiled(scene, changed))
    done = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_whose_certificate_ends_is_named_with_both_times(scene: Scene, tmp_path: Path) -> None:
    short = Subject(role=Role.AGGREGATOR, id="short")
    scene.authority.issue(short, days=12 / 86400)
    process = AggregatorProcess(tmp_path / "state", transport=flags(files(scene.authority, short)))
    address = asyncio.run(process.start())
    try:
        deadline = time.monotonic() + 30
        while True:
            done = run(("run", "list", "--timeout", "20", "--aggregator", address, *flags(scene.ada)))
            if done.exit_code or time.monotonic() > deadline:
                break
            time.sleep(0.5)
    finally:
        process.kill(signal.SIGTERM)
    assert done.exit_code == 4
    assert "ended at" in done.stderr
    assert "and this machine's clock says" in done.stderr
    assert "`fednano certs issue` renews it" in done.stderr


def test_a_service_of_another_time_is_named_with_both_times(scene: Scene) -> None:
    """A server of the future: none of ours would start with such a certificate, so a plain one of gRPC's."""
    future = certificate_of_tomorrow(scene.authority)
    done = against_plain_server(scene, future, (scene.authority.folder / "ca.crt").read_bytes())
    assert done.exit_code == 4
    assert "is good from" in done.stderr
    assert "set the clock right" in done.stderr


def test_a_service_that_hangs_up_for_reasons_of_its_own_is_told_as_that(scene: Scene) -> None:
    folder = files(scene.authority, SERVICE)
    pair = (folder["--tls-key"].read_bytes(), folder["--tls-cert"].read_bytes())
    done = against_plain_server(scene, pair, (scene.other.folder / "ca.crt").read_bytes())
    assert done.exit_code == 4
    assert "its clock may be wrong, or its --tls-ca another; see its log" in done.stderr


def against_plain_server(scene: Scene, pair: tuple[bytes, bytes], trusted: bytes) -> Result:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        credentials = grpc.ssl_server_credentials([pair], root_certificates=trusted, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            return run(("run", "list", "--timeout", "1", "--aggregator", f"127.0.0.1:{port}", *flags(scene.ada)))
        finally:
            server.stop(None).wait()


def certificate_of_tomorrow(authority: Authority) -> tuple[bytes, bytes]:
    key, now = new_key(), datetime.now(UTC)
    model = read_certificate(files(authority, SERVICE)["--tls-cert"])
    builder = x509.CertificateBuilder(
        authority.certificate.subject,
        model.subject,
        key.public_key(),
        x509.random_serial_number(),
        now + timedelta(days=1),
        now + timedelta(days=2),
    )
    for extension in model.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return key_pem(key), certificate_pem(builder.sign(authority.key, hashes.SHA256()))
